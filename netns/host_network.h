#pragma once

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "netns/route_socket.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

/// What the names of our links and tables on the host begin with.
inline constexpr std::string_view host_link_prefix = "qvm-";

/// The interface by which the host reaches the outside.
struct Uplink {
    std::string interface;
    unsigned mtu = 1500;  ///< bytes
};

/// Whether the host passes IPv6 on, as things are.
enum class Ipv6Forwarding {
    off,           ///< and to switch it on is a matter of the whole host's: it drops its own RAs
    by_interface,  ///< force_forwarding can be set for single interfaces (Linux 6.17)
    on,
};

/// What a plan must know of the host: the networks that are taken, and the way out.
struct HostNetwork {
    /// Every address and every route of every table, default routes left out.
    std::vector<boost::asio::ip::network_v4> used;
    std::optional<Uplink> uplink;
    std::optional<Uplink> uplink6;   ///< for IPv6
    std::vector<std::string> ways;   ///< see find_ways()
    std::vector<std::string> ways6;  ///< where they are to be made to forward
    bool has_ipv6 = false;           ///< the kernel has it
    Ipv6Forwarding ipv6_forwarding = Ipv6Forwarding::off;
};

/// Reads the above by netlink, in the namespace of `socket`. Throws Error.
HostNetwork read_host_network(RouteSocket& socket);

/// In the calling thread's namespace.
Ipv6Forwarding read_ipv6_forwarding();

/// Addresses that are outside for everybody, and to which nothing is sent.
boost::asio::ip::address_v4 outside_address();
boost::asio::ip::address_v6 outside_address6();

/// The interface by which the host would send a packet to the outside: the kernel's own answer,
/// which follows policy rules; nothing is sent. Needs no RTNL. Nothing where there is no route.
std::optional<Uplink> find_uplink(RouteSocket& socket);
std::optional<Uplink> find_uplink6(RouteSocket& socket);
/// The interfaces that the host's routes lead to, of any table: what a guest sends may leave by
/// each of them, as a VPN or a policy rule has it. In order; the loopback and qvm's own left out.
/// Throws Error.
std::vector<std::string> find_ways(RouteSocket& socket);
std::vector<std::string> find_ways6(RouteSocket& socket);
/// The interface towards `address`: its name.
std::optional<std::string> interface_towards(RouteSocket& socket,
                                             const boost::asio::ip::address_v4& address);
/// Whether this kernel has IPv6. Throws Error where that cannot be seen.
bool has_ipv6();
/// The host's own addresses, those of its loopback and of single links (RFC 4291, section 2.5.6)
/// left out. Throws Error.
std::vector<boost::asio::ip::address> read_host_addresses(RouteSocket& socket);

/// Whether two networks have an address in common.
bool overlap(const boost::asio::ip::network_v4& a, const boost::asio::ip::network_v4& b);

/// A network that this process has taken in its network namespace, against every other qvm there:
/// the name of an abstract Unix socket, so that it is free again the moment its holder dies.
class Claim {
  public:
    /// Takes `network`; nothing where another process has it. Throws Error.
    static std::optional<Claim> take(const boost::asio::ip::network_v4& network);

    [[nodiscard]] const boost::asio::ip::network_v4& network() const noexcept { return network_; }
    /// Owned by this object. The claim lasts as long as any duplicate.
    [[nodiscard]] int fd() const noexcept { return socket_.get(); }

  private:
    Claim(UniqueFd socket, const boost::asio::ip::network_v4& network)
        : socket_(std::move(socket)), network_(network) {}

    UniqueFd socket_;
    boost::asio::ip::network_v4 network_;
};

/// Takes the first network of `prefix_length` bits in `pool` (the last one, with `from_end`) that
/// overlaps nothing in `used` and that nobody else has claimed; nothing where the pool is
/// exhausted. A claim keeps others from the same network, not from one inside it: who needs
/// networks of another size takes them from the other end.
std::optional<Claim> claim_from(const boost::asio::ip::network_v4& pool, unsigned prefix_length,
                                const std::vector<boost::asio::ip::network_v4>& used,
                                bool from_end = false);

}  // namespace qvm::netns
