#pragma once

#include <functional>

#include "netns/unique_fd.h"

namespace qvm::netns {

/// A network namespace that exists because somebody holds a descriptor of it (or lives in it):
/// nothing is mounted under /run/netns, so the kernel destroys it with its last holder.
/// See network_namespaces(7).
class Namespace {
  public:
    /// Makes a new, empty namespace and runs `inside` in it at once, as run() would, but on the
    /// thread that made it (a thread costs 0.2 ms). The calling thread does `meanwhile`. Returns
    /// when both are done. Needs CAP_SYS_ADMIN. Throws Error.
    static Namespace create(const std::function<void()>& inside = {},
                            const std::function<void()>& meanwhile = {});
    /// The namespace of the calling thread. Throws Error.
    static Namespace current();
    /// Takes over `fd`, a descriptor of a namespace.
    explicit Namespace(UniqueFd fd) : fd_(std::move(fd)) {}

    /// Runs `work` inside the namespace, on a thread of its own that ends with it: the calling
    /// thread never changes namespace, so nothing has to be switched back. What `work` opens
    /// (sockets, TAPs) stays in the namespace whoever uses it later. Exceptions pass through.
    void run(const std::function<void()>& work) const;

    /// The namespace's descriptor, owned by this object.
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    UniqueFd fd_;
};

}  // namespace qvm::netns
