#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#include "images/error.h"

namespace qvm {

/// Exit statuses of our own; the others are the guest's. See qvm(1).
namespace status {
inline constexpr int ok = 0;
inline constexpr int guest_died = 123;  ///< the guest panicked or QEMU died
inline constexpr int timed_out = 124;
inline constexpr int failed = 125;        ///< bad arguments, or the host cannot do it
inline constexpr int not_runnable = 126;  ///< a command that was found
inline constexpr int not_found = 127;     ///< a command
inline constexpr int signalled = 128;     ///< plus the signal's number
}  // namespace status

/// Ends a command: what() is "what failed: why", shown once by main() after "qvm: ", and the hint,
/// where there is a remedy, on a second line.
class Failure : public std::runtime_error {
  public:
    explicit Failure(const std::string& text, std::string hint = {},
                     int exit_status = status::failed)
        : std::runtime_error(text), hint_(std::move(hint)), exit_status_(exit_status) {}

    [[nodiscard]] const std::string& hint() const noexcept { return hint_; }
    [[nodiscard]] int exit_status() const noexcept { return exit_status_; }

  private:
    std::string hint_;
    int exit_status_;
};

/// What errno means, in the system's words.
inline std::string reason() {
    return std::generic_category().message(errno);
}

/// Whether an errno value means that there is no room for what was to be written.
inline bool is_full(int error) {
    return error == ENOSPC || error == EDQUOT;
}

/// Does that work, and says of what the reasons are that it throws alone: Failure's, and those of
/// images::Error and std::system_error.
template <typename Work>
decltype(auto) naming(const std::string& what, const Work& work) {
    try {
        return work();
    } catch (const Failure& failure) {
        throw Failure(what + ": " + failure.what(), failure.hint(), failure.exit_status());
    } catch (const images::Error& error) {
        throw Failure(what + ": " + error.what(), error.hint());
    } catch (const std::system_error& error) {
        throw Failure(what + ": " + error.code().message());
    }
}

}  // namespace qvm
