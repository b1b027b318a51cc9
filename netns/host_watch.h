#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <string>

namespace qvm::netns {

/// Tells that the host's network changed: links, addresses, routes, policy rules, forwarding,
/// the firewall. The kernel says so by netlink(7) multicast; nothing is polled.
class HostWatch {
  public:
    /// Listens from now on, in the calling thread's namespace, for what may concern the network
    /// `id`: the host ends and rules of others come and go by the hundred. With `firewall`, which
    /// needs privilege, for changes of others' nftables rules, too. Throws Error.
    HostWatch(const boost::asio::any_io_executor& executor, std::string id, bool firewall);

    /// Ends when something has changed since the last call. What changes within a moment is told
    /// once.
    boost::asio::awaitable<void> change();

  private:
    [[nodiscard]] bool read_routes();
    [[nodiscard]] bool read_rules();

    boost::asio::posix::stream_descriptor routes_;
    boost::asio::posix::stream_descriptor rules_;
    std::string id_;
};

}  // namespace qvm::netns
