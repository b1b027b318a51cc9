#pragma once

#include <optional>
#include <string>

#include "netns/unique_fd.h"

namespace qvm {

/// A supervisor that can leave the process that the user started: it is a child of that process,
/// which waits for it, stands in for it (exit status, signals, job control), and is let go by
/// detach(). Until then the child dies with its parent.
class Background {
  public:
    /// Forks; to be called while there is one thread and nothing but stdio is open. In the child it
    /// returns nothing. In the parent it returns when the child has ended or has detached, with the
    /// exit status. Throws Failure where there can be no child.
    std::optional<int> fork();

    /// In the child: into a session of its own, with /dev/null as its stdio and / as its directory.
    /// The parent prints `text` and ends with status 0; the child lives on from when it has printed
    /// it, which is waited for (a second, where its stdout takes nothing). Idempotent.
    void detach(const std::string& text) noexcept;

    /// Whether this process is a child that has not detached yet.
    [[nodiscard]] bool attached() const noexcept { return static_cast<bool>(to_parent_); }

  private:
    UniqueFd to_parent_;
};

}  // namespace qvm
