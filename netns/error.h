#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <string_view>

namespace qvm::netns {

/// A step of the network's set-up that failed. what() reads
/// "STEP 'OBJECT': REASON (kernel: TEXT)", ready to be shown to a person.
class Error : public std::runtime_error {
  public:
    /// `step` names the action and its object ("add veth 'up0'"), `error` is an errno value,
    /// `kernel_text` the kernel's extended acknowledgement (NLMSGERR_ATTR_MSG), if it sent one.
    Error(std::string_view step, int error, std::string_view kernel_text = {});
    Error(std::string_view step, std::string_view reason);

    /// The errno value, 0 where there was none.
    [[nodiscard]] int error() const noexcept { return error_; }

  private:
    int error_;
};

/// Throws Error(step, errno) when `result` is negative, else returns it.
int check(int result, std::string_view step);

}  // namespace qvm::netns
