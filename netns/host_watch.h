#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

namespace qvm::netns {

/// Tells that the host's network changed: links, IPv4 addresses, routes, policy rules, forwarding.
/// The kernel says so by rtnetlink(7) multicast; nothing is polled.
class HostWatch {
  public:
    /// Listens from now on, in the calling thread's namespace. Throws Error.
    explicit HostWatch(const boost::asio::any_io_executor& executor);

    /// Ends when something has changed since the last call. What changes within a moment is told
    /// once: a host on which many VMs start and end at the same time is not looked at for each.
    boost::asio::awaitable<void> change();

  private:
    boost::asio::posix::stream_descriptor socket_;
};

}  // namespace qvm::netns
