#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/ip/address.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "netns/unique_fd.h"

namespace qvm::netns {

/// The `nameserver` lines of a resolv.conf(5), in order; what cannot be read is left out, and as
/// with libc an empty list means the local host.
std::vector<boost::asio::ip::address> parse_nameservers(std::string_view resolv_conf);

/// Carries DNS queries out of a namespace: what arrives at sockets inside is sent on from the
/// host's own namespace to the host's resolvers, which are looked up anew for every query. So a
/// loopback stub (127.0.0.53), split DNS and a VPN that came up later work for the guest as they
/// do for the host. Messages are not looked into.
class DnsRelay {
  public:
    /// Told why the guests' names do not resolve, for people, and with nothing that they do again.
    using Report = std::function<void(const std::string& why)>;

    /// Takes ownership of `udp` (bound) and `tcp` (listening), which live in the namespace, and
    /// starts to serve them on `executor`. With `report` the resolvers are asked for the root (RFC
    /// 1035) until they answer, and watched from then on; three silences in a row are reported.
    /// Throws boost::system::system_error.
    DnsRelay(const boost::asio::any_io_executor& executor, UniqueFd udp, UniqueFd tcp,
             Report report = {}, std::filesystem::path resolv_conf = "/etc/resolv.conf");
    DnsRelay(DnsRelay&&) = default;
    /// Stops serving and reporting; queries under way run to their end, seconds at most.
    ~DnsRelay();

  private:
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace qvm::netns
