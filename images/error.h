#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace qvm::images {

/// What every function here throws (besides std::system_error for a failed system call). what() is
/// a reason for a person, to stand after "qvm: OBJECT: "; it does not repeat the object's path.
/// Where there is a remedy the hint says it.
class Error : public std::runtime_error {
  public:
    explicit Error(const std::string& text, std::string hint = {})
        : std::runtime_error(text), hint_(std::move(hint)) {}

    [[nodiscard]] const std::string& hint() const noexcept { return hint_; }

  private:
    std::string hint_;
};

}  // namespace qvm::images
