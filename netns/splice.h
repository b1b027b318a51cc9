#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "netns/unique_fd.h"

/// Bytes from one socket to another inside the kernel (splice(2)). Nothing here waits.
namespace qvm::netns {

/// A pipe(7) of the kernel's default size, both ends non-blocking.
struct Pipe {
    UniqueFd read_end;
    UniqueFd write_end;
};

/// The pipes of all connections. Only bytes that are on their way need one, so a few serve
/// thousands of connections.
class PipePool {
  public:
    /// Makes some pipes at once: they are kept, so that where all descriptors are taken the
    /// connections that there are can go on. Throws Error.
    PipePool();

    /// A pipe without bytes in it; nothing where no descriptors are left.
    std::optional<Pipe> take();
    /// Takes an empty pipe back; closes it where there are enough.
    void give_back(Pipe pipe);

    [[nodiscard]] std::size_t size() const noexcept { return free_.size(); }

    /// No more than this are kept.
    static constexpr std::size_t most = 16;

  private:
    std::vector<Pipe> free_;
};

/// One way of a connection. It holds no more than one pipe's bytes, and no pipe without bytes: a
/// reader that stops makes the writer stop.
class Splice {
  public:
    /// What one way waits for, or how it ended.
    enum class Next {
        readable,  ///< wait until `from` can be read
        writable,  ///< wait until `to` can be written
        pipe,      ///< no pipe can be had: try again later
        end,       ///< `from` has ended, and `to` was given all of it
        failed,    ///< one of the two is broken (errno)
    };

    /// Moves what can be moved at once, up to a share that leaves the other connections theirs.
    /// Both are stream sockets, non-blocking, borrowed. SIGPIPE must be ignored or blocked.
    Next advance(int from, int to, PipePool& pipes);

  private:
    std::optional<Next> fill(int from, PipePool& pipes);
    std::optional<Next> drain(int to);

    std::optional<Pipe> pipe_;
    std::size_t held_ = 0;  ///< bytes in pipe_
};

}  // namespace qvm::netns
