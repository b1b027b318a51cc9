#include "netns/host_network.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/route/addr.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "netns/error.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

// Split defaults (0.0.0.0/1 and 128.0.0.0/1, as VPNs install them) cover everything as well.
constexpr unsigned default_route_bits = 1;

constexpr const char* find_step = "find the uplink";

std::optional<ip::network_v4> to_network(const nl_addr* address) {
    if (address == nullptr || nl_addr_get_family(address) != AF_INET) return std::nullopt;
    ip::address_v4::bytes_type bytes{};
    const auto length = std::min<std::size_t>(nl_addr_get_len(address), bytes.size());
    std::memcpy(bytes.data(), nl_addr_get_binary_addr(address), length);
    return ip::network_v4{ip::address_v4{bytes},
                          static_cast<unsigned short>(nl_addr_get_prefixlen(address))};
}

void add_addresses(nl_sock* socket, HostNetwork& host) {
    nl_cache* raw = nullptr;
    nl_check("read the host's addresses",
             [&] { return alloc_address_cache(socket, AF_INET, &raw); });
    for_each<rtnl_addr>(NlCache{raw}, [&](rtnl_addr* address) {
        auto network = to_network(rtnl_addr_get_local(address));
        if (network) host.used.push_back(*network);
    });
}

NlCache read_routes(nl_sock* socket, int family) {
    nl_cache* raw = nullptr;
    nl_check("read the host's routes",
             [&] { return rtnl_route_alloc_cache(socket, family, 0, &raw); });
    return NlCache{raw};
}

void add_routes(const NlCache& routes, HostNetwork& host) {
    for_each<rtnl_route>(routes, [&](rtnl_route* route) {
        auto network = to_network(rtnl_route_get_dst(route));
        if (network && network->prefix_length() > default_route_bits) host.used.push_back(*network);
    });
}

std::unique_ptr<nl_addr, Deleter<nl_addr_put>> to_nl(const ip::address& address) {
    if (address.is_v4()) {
        const auto bytes = address.to_v4().to_bytes();
        return std::unique_ptr<nl_addr, Deleter<nl_addr_put>>{
            nl_addr_build(AF_INET, bytes.data(), bytes.size())};
    }
    const auto bytes = address.to_v6().to_bytes();
    return std::unique_ptr<nl_addr, Deleter<nl_addr_put>>{
        nl_addr_build(AF_INET6, bytes.data(), bytes.size())};
}

/// Nothing where it is of another family, or empty, as a default route's destination is.
std::optional<ip::address> to_address(const nl_addr* address) {
    if (address == nullptr) return std::nullopt;
    const auto* bytes = static_cast<const unsigned char*>(nl_addr_get_binary_addr(address));
    const auto as = [&](auto& copy, int family) {
        if (nl_addr_get_family(address) != family || nl_addr_get_len(address) != copy.size())
            return false;
        std::copy_n(bytes, copy.size(), copy.begin());
        return true;
    };
    ip::address_v4::bytes_type v4{};
    ip::address_v6::bytes_type v6{};
    if (as(v4, AF_INET)) return ip::address_v4{v4};
    if (as(v6, AF_INET6)) return ip::address_v6{v6};
    return std::nullopt;
}

/// What a file of /proc/sys says; nothing where it is not there.
std::optional<char> read_flag(const char* path) {
    const UniqueFd fd{::open(path, O_RDONLY | O_CLOEXEC)};
    char value = 0;
    if (!fd || ::read(fd.get(), &value, 1) != 1) return std::nullopt;
    return value;
}

/// The interface's index; 0 where a packet would not leave (RTM_GETROUTE).
int index_towards(nl_sock* socket, const ip::address& address) {
    const auto destination = to_nl(address);
    if (!destination) throw Error(find_step, ENOMEM);
    rtnl_route* raw = nullptr;
    const int error = rtnl_route_lookup(socket, destination.get(), &raw);
    // libnl has one name for both, and leaves what sendmsg(2) said.
    if (error == -NLE_NOMEM) throw Error(find_step, errno == ENOMEM ? ENOMEM : ENOBUFS);
    if (error < 0 || raw == nullptr) return 0;
    const std::unique_ptr<rtnl_route, Deleter<rtnl_route_put>> route{raw};
    auto* hop = rtnl_route_nexthop_n(route.get(), 0);
    if (hop == nullptr || rtnl_route_get_type(route.get()) != RTN_UNICAST) return 0;
    return rtnl_route_nh_get_ifindex(hop);
}

/// Asks for an interface by ioctls, which unlike RTM_GETLINK need no RTNL either.
class Interfaces {
  public:
    Interfaces() : socket_(check(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), find_step)) {}

    /// Nothing where it is gone.
    [[nodiscard]] std::optional<std::string> name_of(int index) const {
        ifreq request{};
        request.ifr_ifindex = index;
        if (is_gone(SIOCGIFNAME, request)) return std::nullopt;
        return request.ifr_name;
    }
    [[nodiscard]] std::optional<Uplink> describe(int index) const {
        auto name = name_of(index);
        if (!name) return std::nullopt;
        ifreq request{};
        name->copy(request.ifr_name, sizeof request.ifr_name - 1);
        if (is_gone(SIOCGIFMTU, request)) return std::nullopt;
        return Uplink{std::move(*name), static_cast<unsigned>(request.ifr_mtu)};
    }

  private:
    bool is_gone(unsigned long call, ifreq& request) const {
        if (::ioctl(socket_.get(), call, &request) == 0) return false;
        if (errno != ENODEV) throw Error(find_step, errno);
        return true;
    }

    UniqueFd socket_;
};

std::optional<Uplink> describe(int index) {
    return Interfaces{}.describe(index);
}

bool is_link_local(rtnl_route* route) {
    const auto address = to_address(rtnl_route_get_dst(route));
    return address && address->is_v6() && address->to_v6().is_link_local();
}

/// See find_ways().
std::vector<std::string> ways_of(const NlCache& routes) {
    std::set<int> indexes;
    for_each<rtnl_route>(routes, [&](rtnl_route* route) {
        if (rtnl_route_get_type(route) != RTN_UNICAST || is_link_local(route)) return;
        for (int i = 0; i < rtnl_route_get_nnexthops(route); ++i)
            indexes.insert(rtnl_route_nh_get_ifindex(rtnl_route_nexthop_n(route, i)));
    });
    const Interfaces interfaces;
    std::vector<std::string> ways;
    for (const int index : indexes) {
        auto name = interfaces.name_of(index);
        if (name && *name != "lo" && !name->starts_with(host_link_prefix))
            ways.push_back(std::move(*name));
    }
    return ways;
}

}  // namespace

Ipv6Forwarding read_ipv6_forwarding() {
    if (read_flag("/proc/sys/net/ipv6/conf/all/forwarding") == '1') return Ipv6Forwarding::on;
    return read_flag("/proc/sys/net/ipv6/conf/all/force_forwarding") ? Ipv6Forwarding::by_interface
                                                                     : Ipv6Forwarding::off;
}

ip::address_v4 outside_address() {
    // A root name server (a.root-servers.net): outside for everybody, while networks that nobody
    // has (RFC 5737) are often given routes to nowhere.
    return ip::make_address_v4("198.41.0.4");
}

ip::address_v6 outside_address6() {
    return ip::make_address_v6("2001:503:ba3e::2:30");  // the same
}

bool has_ipv6() {
    constexpr const char* settings = "/proc/sys/net/ipv6";
    if (::access(settings, F_OK) == 0) return true;
    if (errno != ENOENT) throw Error(fmt::format("look for '{}'", settings), errno);
    return false;
}

HostNetwork read_host_network(RouteSocket& socket) {
    HostNetwork host;
    add_addresses(socket.get(), host);
    const auto routes = read_routes(socket.get(), AF_INET);
    add_routes(routes, host);
    host.ways = ways_of(routes);
    host.uplink = find_uplink(socket);
    host.has_ipv6 = has_ipv6();
    if (!host.has_ipv6) return host;
    host.uplink6 = find_uplink6(socket);
    host.ipv6_forwarding = read_ipv6_forwarding();
    if (host.uplink6 && host.ipv6_forwarding == Ipv6Forwarding::by_interface)
        host.ways6 = find_ways6(socket);
    return host;
}

std::vector<ip::address> read_host_addresses(RouteSocket& socket) {
    std::vector<ip::address> result;
    for (const int family : {AF_INET, AF_INET6}) {
        nl_cache* raw = nullptr;
        nl_check("read the host's addresses",
                 [&] { return alloc_address_cache(socket.get(), family, &raw); });
        for_each<rtnl_addr>(NlCache{raw}, [&](rtnl_addr* each) {
            const auto address = to_address(rtnl_addr_get_local(each));
            if (!address || address->is_loopback()) return;
            if (address->is_v6() && address->to_v6().is_link_local()) return;
            result.push_back(*address);
        });
    }
    return result;
}

std::optional<Uplink> find_uplink(RouteSocket& socket) {
    return describe(index_towards(socket.get(), outside_address()));
}

std::optional<Uplink> find_uplink6(RouteSocket& socket) {
    return describe(index_towards(socket.get(), outside_address6()));
}

std::vector<std::string> find_ways(RouteSocket& socket) {
    return ways_of(read_routes(socket.get(), AF_INET));
}

std::vector<std::string> find_ways6(RouteSocket& socket) {
    return ways_of(read_routes(socket.get(), AF_INET6));
}

std::optional<std::string> interface_towards(RouteSocket& socket, const ip::address_v4& address) {
    auto found = describe(index_towards(socket.get(), address));
    return found ? std::optional{std::move(found->interface)} : std::nullopt;
}

bool overlap(const ip::network_v4& a, const ip::network_v4& b) {
    const auto bits = std::min(a.prefix_length(), b.prefix_length());
    return ip::network_v4{a.address(), bits}.canonical() ==
           ip::network_v4{b.address(), bits}.canonical();
}

std::optional<Claim> Claim::take(const ip::network_v4& network) {
    const auto step = fmt::format("claim network {}", network.to_string());
    UniqueFd socket{check(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), step)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const auto name = "qvm/" + network.canonical().to_string();
    name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), length) == 0)
        return Claim{std::move(socket), network.canonical()};
    if (errno != EADDRINUSE) throw Error(step, errno);
    return std::nullopt;
}

std::optional<Claim> claim_from(const ip::network_v4& pool, unsigned prefix_length,
                                const std::vector<ip::network_v4>& used, bool from_end) {
    if (prefix_length < pool.prefix_length()) return std::nullopt;
    const std::uint32_t count = 1U << (prefix_length - pool.prefix_length());
    const unsigned shift = 32 - prefix_length;
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto number = from_end ? count - 1 - i : i;
        const ip::network_v4 candidate{ip::address_v4{pool.network().to_uint() + (number << shift)},
                                       static_cast<unsigned short>(prefix_length)};
        const auto taken = [&](const auto& other) { return overlap(candidate, other); };
        if (std::any_of(used.begin(), used.end(), taken)) continue;
        if (auto claim = Claim::take(candidate)) return claim;
    }
    return std::nullopt;
}

}  // namespace qvm::netns
