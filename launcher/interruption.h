#pragma once

#include <signal.h>

#include "netns/unique_fd.h"

namespace qvm {

/// While it lives, a signal that would end us does so where we ask for it, so that nothing half
/// written stays.
class Interruption {
  public:
    /// Throws Failure.
    Interruption();
    Interruption(const Interruption&) = delete;
    Interruption& operator=(const Interruption&) = delete;
    ~Interruption() { ::sigprocmask(SIG_SETMASK, &saved_, nullptr); }

    /// Can be read once there is a signal: what a tool is to be killed by.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// Throws Failure, with the exit status for it, once there is a signal.
    void check() const;

  private:
    sigset_t saved_;
    UniqueFd fd_;
};

}  // namespace qvm
