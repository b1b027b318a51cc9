#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <string>

namespace qvm::netns {

/// Tells that the host's network changed: links, IPv4 addresses, routes, policy rules, forwarding.
/// The kernel says so by rtnetlink(7) multicast; nothing is polled.
class HostWatch {
  public:
    /// Listens from now on, in the calling thread's namespace, for what may concern the network
    /// `id`: the host ends of others come and go by the hundred. Throws Error.
    HostWatch(const boost::asio::any_io_executor& executor, std::string id);

    /// Ends when something has changed since the last call. What changes within a moment is told
    /// once.
    boost::asio::awaitable<void> change();

  private:
    [[nodiscard]] bool read_all();

    boost::asio::posix::stream_descriptor socket_;
    std::string id_;
};

}  // namespace qvm::netns
