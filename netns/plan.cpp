#include "netns/plan.h"

#include <fmt/format.h>
#include <strings.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "netns/error.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

constexpr unsigned smallest_mtu = 576;   // RFC 791: what every IPv4 host must take
constexpr unsigned largest_mtu = 65520;  // a TAP's largest, with the Ethernet header
constexpr unsigned shortest_prefix = 8;
constexpr std::size_t id_length = 8;
constexpr unsigned longest_prefix = 29;  // gateway, bridge and three guests
constexpr unsigned widest_link = 24;     // prefix of a shared network's host addresses
constexpr const char* pasta_mac = "52:54:00:00:00:02";
constexpr unsigned most_queues = 256;     // MAX_TAP_QUEUES of the kernel
constexpr unsigned smallest_mtu6 = 1280;  // RFC 8200, section 5
constexpr std::uint16_t dhcp_server_port = 67;
constexpr std::uint16_t dhcp6_server_port = 547;
// RFC 4861, section 4.
constexpr std::uint8_t router_advertisement = 134;
constexpr std::uint8_t neighbor_solicitation = 135;
constexpr std::uint8_t neighbor_advertisement = 136;
constexpr std::uint8_t redirect = 137;

// Where a VPN routes the first, the second is still free.
const std::array<ip::network_v4, 2> default_pools{ip::make_network_v4("10.213.0.0/16"),
                                                  ip::make_network_v4("172.29.0.0/16")};
// The first of these /24s that the host does not use.
const ip::network_v4 first_subnet = ip::make_network_v4("192.168.26.0/24");
const ip::network_v4 subnets = ip::make_network_v4("192.168.0.0/16");

ip::address_v4 nth(const ip::network_v4& network, std::uint32_t n) {
    return ip::address_v4{network.network().to_uint() + n};
}

// A prefix of nobody else's (RFC 4193, section 3.2): the guests' network, and the uplinks' ends,
// whose IPv4 addresses are their last 32 bits. All are behind NAT, so that each VM can have them.
const ip::network_v6 subnet6{ip::make_address_v6("fd71:766d:26::"), 64};
const ip::address_v6 uplinks6 = ip::make_address_v6("fd71:766d:0:1::");
const ip::network_v6 link_local{ip::make_address_v6("fe80::"), 64};

/// The address with `low` as its last 32 bits.
ip::address_v6 with_low(const ip::address_v6& address, std::uint32_t low) {
    auto bytes = address.to_bytes();
    for (std::size_t i = 0; i < 4; ++i)
        bytes[15 - i] = static_cast<std::uint8_t>(low >> (8 * i) & 0xff);
    return ip::address_v6{bytes};
}

ip::network_v6 only(const ip::address_v6& address) {
    return {address, 128};
}

bool is_free(const ip::network_v4& network, const HostNetwork& host) {
    return std::none_of(host.used.begin(), host.used.end(),
                        [&](const auto& used) { return overlap(network, used); });
}

bool is_unicast(const ip::network_v4& network) {
    const auto& address = network.address();
    return address.to_bytes()[0] != 0 && !address.is_loopback() && address.to_uint() < 0xe0000000;
}

/// `what` is "subnet" or "pool".
void check_network(std::string_view what, const ip::network_v4& network, unsigned longest) {
    const auto step = fmt::format("{} {}", what, network.to_string());
    if (network.canonical() != network)
        throw Error(step, fmt::format("has host bits set (the network is {})",
                                      network.canonical().to_string()));
    if (network.prefix_length() > longest || network.prefix_length() < shortest_prefix)
        throw Error(step,
                    fmt::format("a prefix of {} to {} bits is needed", shortest_prefix, longest));
    if (!is_unicast(network)) throw Error(step, "is not for hosts (RFC 6890)");
}

void check_subnet(const ip::network_v4& subnet, const Claims& claims) {
    check_network("subnet", subnet, longest_prefix);
    if (claims.link && overlap(subnet, claims.link->network()))
        throw Error(
            fmt::format("subnet {}", subnet.to_string()),
            fmt::format("overlaps the link to the host, {}", claims.link->network().to_string()));
}

/// The subnets to try, the preferred one first: .26 to .255, then .0 to .25.
std::vector<ip::network_v4> subnet_candidates() {
    std::vector<ip::network_v4> result;
    for (std::uint32_t i = 0; i < 256; ++i) {
        const auto third = ((first_subnet.network().to_uint() >> 8) + i) & 0xff;
        result.emplace_back(nth(subnets, third << 8), static_cast<unsigned short>(24));
    }
    return result;
}

ip::network_v4 choose_subnet(const NetworkSpec& spec, const HostNetwork& host) {
    if (spec.subnet) return *spec.subnet;
    // Nothing routes between the host and an isolated guest, so nothing can clash.
    if (spec.mode == Mode::isolated) return first_subnet;
    for (const auto& candidate : subnet_candidates())
        if (is_free(candidate, host)) return candidate;
    throw Error("choose a subnet", "the host has routes to all of " + subnets.to_string());
}

/// A guest that is alone needs a /31; guests that share a network as many addresses as it has.
unsigned link_prefix(const NetworkSpec& spec) {
    if (!spec.shared) return 31;
    return std::max<unsigned>(widest_link, spec.subnet ? spec.subnet->prefix_length() : 24);
}

Claim claim_link(const NetworkSpec& spec, const HostNetwork& host) {
    const auto prefix = link_prefix(spec);
    if (spec.pool) {
        check_network("pool", *spec.pool, prefix);
        if (auto claim = claim_from(*spec.pool, prefix, host.used, spec.shared))
            return std::move(*claim);
        throw Error(fmt::format("pool {}", spec.pool->to_string()),
                    fmt::format("no /{} in it is free of the host's routes", prefix));
    }
    for (const auto& pool : default_pools)
        if (auto claim = claim_from(pool, prefix, host.used, spec.shared)) return std::move(*claim);
    throw Error(fmt::format("choose a /{}", prefix),
                "the host has routes to all of 10.213.0.0/16 and 172.29.0.0/16");
}

Claim claim_flat_subnet(const NetworkSpec& spec, const HostNetwork& host) {
    if (spec.subnet) {
        check_network("subnet", *spec.subnet, longest_prefix);
        if (is_free(*spec.subnet, host))
            if (auto claim = Claim::take(*spec.subnet)) return std::move(*claim);
        throw Error(fmt::format("subnet {}", spec.subnet->to_string()),
                    "the host has an address or a route in it already");
    }
    for (const auto& candidate : subnet_candidates())
        if (is_free(candidate, host))
            if (auto claim = Claim::take(candidate)) return std::move(*claim);
    throw Error("choose a subnet", "the host has routes to all of " + subnets.to_string());
}

unsigned choose_mtu(const NetworkSpec& spec, const HostNetwork& host) {
    if (spec.mtu) {
        if (*spec.mtu < smallest_mtu || *spec.mtu > largest_mtu)
            throw Error(fmt::format("mtu {}", *spec.mtu),
                        fmt::format("must be {} to {}", smallest_mtu, largest_mtu));
        return *spec.mtu;
    }
    if (spec.mode == Mode::isolated || !host.uplink) return 1500;
    return std::clamp(host.uplink->mtu, smallest_mtu, largest_mtu);
}

void check_guest_address(const ip::address_v4& address, const NetworkPlan& plan) {
    const auto text = fmt::format("address {}", address.to_string());
    if (!overlap({address, 32}, plan.subnet))
        throw Error(text, "is not in the subnet " + plan.subnet.to_string());
    if (address == plan.gateway || address == plan.own_address)
        throw Error(text, "is the gateway's");
    if (address == plan.subnet.network() || address == plan.subnet.broadcast())
        throw Error(text, "is the subnet's network or broadcast address");
}

bool has_address(const std::vector<GuestPlan>& guests, const ip::address_v4& address) {
    return std::any_of(guests.begin(), guests.end(),
                       [&](const auto& guest) { return guest.address == address; });
}

bool has_mac(const std::vector<GuestPlan>& guests, const std::string& mac) {
    return std::any_of(guests.begin(), guests.end(), [&](const auto& guest) {
        return ::strcasecmp(guest.mac.c_str(), mac.c_str()) == 0;
    });
}

/// The first address from .10 on that nobody has, and only then those below.
ip::address_v4 choose_address(const NetworkPlan& plan, const std::vector<GuestPlan>& others) {
    const auto size = std::uint32_t{1} << (32 - plan.subnet.prefix_length());
    const std::uint32_t first = plan.subnet.prefix_length() <= 28 ? 10 : 3;
    for (std::uint32_t i = 0; i < size; ++i) {
        const auto address = nth(plan.subnet, (first + i) % size);
        const bool special = address == plan.gateway || address == plan.own_address ||
                             address == plan.subnet.network() || address == plan.subnet.broadcast();
        if (!special && !has_address(others, address)) return address;
    }
    throw Error(fmt::format("subnet {}", plan.subnet.to_string()), "has no address left");
}

std::optional<ip::address_v4> host_address_of(const NetworkPlan& plan,
                                              const ip::address_v4& guest) {
    if (!plan.uplink || plan.uplink->kind == UplinkKind::pasta) return std::nullopt;
    if (plan.mode == Mode::flat) return guest;
    const auto& guests = plan.uplink->guests;
    if (!guests) return plan.uplink->inner_address;
    const auto number = guest.to_uint() - plan.subnet.network().to_uint();
    if (number > guests->broadcast().to_uint() - guests->network().to_uint()) return std::nullopt;
    return nth({guests->network(), guests->prefix_length()}, number);
}

/// The same in every run, and different for each address of a subnet.
std::string default_mac(const ip::address_v4& address) {
    const auto bytes = address.to_bytes();
    return fmt::format("52:54:00:{:02x}:{:02x}:{:02x}", bytes[1], bytes[2], bytes[3]);
}

bool looks_like_mac(std::string_view mac) {
    constexpr std::size_t length = 17;
    if (mac.size() != length) return false;
    for (std::size_t i = 0; i < length; ++i)
        if (i % 3 == 2 ? mac[i] != ':' : !std::isxdigit(static_cast<unsigned char>(mac[i])))
            return false;
    return true;
}

/// Nobody but pasta and the namespace see these addresses.
UplinkPlan plan_pasta(const NetworkPlan& plan) {
    UplinkPlan uplink;
    uplink.kind = UplinkKind::pasta;
    const auto& pool = overlap(plan.subnet, default_pools[0]) ? default_pools[1] : default_pools[0];
    uplink.host_address = nth(pool, 0);
    uplink.inner_address = nth(pool, 1);
    return uplink;
}

UplinkPlan plan_veth(const NetworkPlan& plan, const HostNetwork& host, const Claims& claims) {
    UplinkPlan uplink;
    uplink.host_link = host_link_name(plan.id);
    if (plan.mode == Mode::flat) {
        if (!host.uplink)
            throw Error("find the uplink", "the host has no route to the outside for 'flat'");
        uplink.host_address = plan.gateway;
        uplink.inner_address = plan.own_address;
        uplink.prefix_length = plan.subnet.prefix_length();
    } else {
        const auto& link = claims.link.value().network();
        uplink.host_address = nth(link, 0);
        uplink.inner_address = nth(link, 1);
        if (link.prefix_length() < uplink.prefix_length) uplink.guests = link;
    }
    return uplink;
}

std::string joined(const std::vector<std::string>& words) {
    return fmt::format("{}", fmt::join(words, " "));
}

}  // namespace

std::string host_link_name(const std::string& id) {
    return std::string{host_link_prefix} + id;
}

void check_mac(const std::string& mac) {
    const auto step = fmt::format("mac '{}'", mac);
    if (!looks_like_mac(mac)) throw Error(step, "must look like 52:54:00:12:34:56");
    // The lowest bit of the first byte (IEEE 802, group address).
    if (std::stoi(mac.substr(0, 2), nullptr, 16) & 1) throw Error(step, "is a multicast address");
    if (mac == "00:00:00:00:00:00") throw Error(step, "is all zeros");
}

Claims claim_networks(const NetworkSpec& spec, const HostNetwork& host) {
    Claims claims;
    if (spec.mode == Mode::nat && spec.uplink == UplinkKind::veth)
        claims.link = claim_link(spec, host);
    if (spec.mode == Mode::flat) claims.subnet = claim_flat_subnet(spec, host);
    return claims;
}

NetworkPlan make_plan(const NetworkSpec& spec, const HostNetwork& host, const Claims& claims) {
    const bool pasta = spec.mode == Mode::nat && spec.uplink == UplinkKind::pasta;
    if (pasta && spec.pool)
        throw Error(fmt::format("pool {}", spec.pool->to_string()),
                    "goes with the veth uplink, and here it is pasta");
    NetworkPlan plan;
    plan.mode = spec.mode;
    plan.id = spec.id;
    plan.mtu = choose_mtu(spec, host);
    plan.subnet = claims.subnet ? claims.subnet->network() : choose_subnet(spec, host);
    check_subnet(plan.subnet, claims);
    plan.gateway = nth(plan.subnet, 1);
    plan.own_address = spec.mode == Mode::flat ? nth(plan.subnet, 2) : plan.gateway;
    plan.bridged = spec.shared || spec.mode == Mode::flat;
    if (spec.mode != Mode::flat && host.has_ipv6 && plan.mtu >= smallest_mtu6)
        plan.subnet6 = subnet6;
    plan.port_isolation = spec.port_isolation;
    plan.allow_host = spec.allow_host;
    if (spec.mode == Mode::isolated) return plan;
    plan.uplink = pasta ? plan_pasta(plan) : plan_veth(plan, host, claims);
    if (host.uplink) plan.uplink->interface = host.uplink->interface;
    if (host.uplink6 && plan.subnet6) plan.uplink->interface6 = host.uplink6->interface;
    plan.uplink->ways = host.ways;
    plan.uplink->ways6 = host.ways6;
    plan.uplink->ipv6 =
        !plan.uplink->interface6.empty() && (pasta || host.ipv6_forwarding != Ipv6Forwarding::off);
    return plan;
}

GuestPlan make_guest(const NetworkSpec& spec, const NetworkPlan& plan,
                     const std::vector<GuestPlan>& others) {
    GuestPlan guest;
    guest.name = spec.guest_name;
    guest.address = spec.address ? *spec.address : choose_address(plan, others);
    check_guest_address(guest.address, plan);
    if (has_address(others, guest.address))
        throw Error(fmt::format("address {}", guest.address.to_string()),
                    "is another guest's in this group");
    if (spec.mac) check_mac(*spec.mac);
    guest.mac = spec.mac.value_or(default_mac(guest.address));
    if (has_mac(others, guest.mac))
        throw Error(fmt::format("mac '{}'", guest.mac), "is another guest's in this group");
    guest.queues = spec.queues;
    if (guest.queues < 1 || guest.queues > most_queues)
        throw Error(fmt::format("queues {}", guest.queues),
                    fmt::format("must be 1 to {}", most_queues));
    guest.port_security = spec.port_security;
    guest.host_address = host_address_of(plan, guest.address);
    return guest;
}

void check_same(const NetworkSpec& spec, const NetworkPlan& plan) {
    if (spec.mode != plan.mode)
        throw Error(fmt::format("mode {}", to_string(spec.mode)),
                    fmt::format("the group's network is {}", to_string(plan.mode)));
    if (spec.subnet && *spec.subnet != plan.subnet)
        throw Error(fmt::format("subnet {}", spec.subnet->to_string()),
                    fmt::format("the group's network is {}", plan.subnet.to_string()));
    if (spec.mtu && *spec.mtu != plan.mtu)
        throw Error(fmt::format("mtu {}", *spec.mtu),
                    fmt::format("the group's network has {}", plan.mtu));
    const auto link = plan.uplink ? plan.uplink->guests : std::nullopt;
    if (spec.pool && !link)
        throw Error(fmt::format("pool {}", spec.pool->to_string()),
                    "goes with the veth uplink, which the group has not");
    if (spec.pool && link && !overlap(*spec.pool, *link))
        throw Error(fmt::format("pool {}", spec.pool->to_string()),
                    fmt::format("the group's host addresses are {}", link->to_string()));
}

const char* lan_interface(const NetworkPlan& plan) {
    return plan.bridged ? bridge_name : tap_name;
}

std::string_view to_string(Mode mode) {
    if (mode == Mode::isolated) return "isolated";
    return mode == Mode::flat ? "flat" : "nat";
}

void take_pasta(NetworkPlan& plan, GuestPlan& guest) {
    const auto before = plan.uplink.value();
    plan.uplink = plan_pasta(plan);
    plan.uplink->interface = before.interface;
    plan.uplink->interface6 = before.interface6;
    plan.uplink->ipv6 = !before.interface6.empty();
    guest.host_address.reset();
}

std::optional<ip::address_v6> gateway6_of(const NetworkPlan& plan) {
    return plan.subnet6 ? std::optional{with_low(plan.subnet6->address(), 1)} : std::nullopt;
}

ip::address_v6 router_link_local() {
    return with_low(link_local.address(), 1);
}

std::optional<ip::address_v6> address6_of(const NetworkPlan& plan, const ip::address_v4& address) {
    if (!plan.subnet6) return std::nullopt;
    return with_low(plan.subnet6->address(), address.to_uint() - plan.subnet.network().to_uint());
}

ip::address_v6 host_address6_of(const UplinkPlan& uplink) {
    return with_low(uplinks6, uplink.host_address.to_uint());
}

ip::address_v6 inner_address6_of(const UplinkPlan& uplink) {
    return with_low(uplinks6, uplink.inner_address.to_uint());
}

std::string_view to_string(UplinkKind kind) {
    return kind == UplinkKind::veth ? "veth" : "pasta";
}

std::optional<nft::Table> inner_table(const NetworkPlan& plan, const GuestPlan& guest) {
    using namespace nft;
    Table table{.name = "qvm", .chains = {}};
    const char* lan = lan_interface(plan);
    const OutputInterface out{inner_link_name};
    if (plan.uplink && plan.uplink->kind == UplinkKind::veth && plan.mode == Mode::nat) {
        const auto& uplink = *plan.uplink;
        Rule to_guest =
            uplink.guests
                ? Rule{InputInterface{inner_link_name}, DestinationNetwork{*uplink.guests},
                       DnatPrefix{{plan.subnet.network(), uplink.guests->prefix_length()}}}
                : Rule{InputInterface{inner_link_name},
                       DestinationNetwork{ip::network_v4{uplink.inner_address, 32}},
                       Dnat{guest.address}};
        table.chains.push_back({Chain::Hook::prerouting_nat, {std::move(to_guest)}});
    }
    // Who is kept from a neighbour on the bridge is not led to it by the router.
    if (plan.port_isolation && plan.mode != Mode::flat)
        table.chains.push_back(
            {Chain::Hook::forward_filter, {{InputInterface{lan}, OutputInterface{lan}, Drop{}}}});
    if (plan.mode == Mode::nat) {
        std::vector<Rule> rules{{out, SourceNetwork{plan.subnet}, Masquerade{}}};
        if (plan.uplink.value().ipv6)
            rules.push_back({out, SourceNetwork{plan.subnet6.value()}, Masquerade{}});
        table.chains.push_back({Chain::Hook::postrouting_nat, std::move(rules)});
    }
    if (table.chains.empty()) return std::nullopt;
    return table;
}

std::vector<nft::Rule> guard_rules(const std::string& mac) {
    using namespace nft;
    return {{EtherSource{mac, true}, Drop{}},
            {SourcePort{dhcp_server_port}, Drop{}},
            {SourcePort{dhcp6_server_port}, Drop{}},
            {Icmpv6Type{router_advertisement}, Drop{}},
            {Icmpv6Type{redirect}, Drop{}}};
}

std::optional<nft::Table> guard_table(const NetworkPlan& plan, const GuestPlan& guest,
                                      const std::string& tap) {
    if (!guest.port_security) return std::nullopt;
    using namespace nft;
    const auto& mac = guest.mac;
    const auto router = router_link_local();
    const Icmpv6Type advertises{neighbor_advertisement};
    auto rules = guard_rules(mac);
    const std::vector<Rule> own{
        {ArpSender{mac, guest.address}, Accept{}},
        {ArpSender{mac, ip::address_v4::any()}, Accept{}},  // it asks whether it is alone
        {SourceNetwork{ip::network_v4{guest.address, 32}}, Accept{}},
        {SourceNetwork{ip::network_v4{ip::address_v4::any(), 32}},
         DestinationPort{dhcp_server_port}, Accept{}},
        {advertises, NeighborTarget{only(router)}, Drop{}},
        {SourceNetwork{only(router)}, Drop{}},
    };
    rules.insert(rules.end(), own.begin(), own.end());
    if (const auto address6 = address6_of(plan, guest.address)) {
        // With nobody beside it a guest may choose its address; see dnsmasq_command().
        if (plan.bridged)
            rules.push_back({advertises, NeighborTarget{*plan.subnet6},
                             NeighborTarget{only(*address6), true}, Drop{}});
        rules.push_back({SourceNetwork{plan.bridged ? only(*address6) : *plan.subnet6}, Accept{}});
    }
    // Which address it has on the link is the guest's to choose (RFC 7217).
    rules.push_back({SourceNetwork{link_local}, Accept{}});
    rules.push_back({SourceNetwork{only(ip::address_v6::any())}, Accept{}});
    rules.push_back({Drop{}});
    return Table{.name = "qvm-" + tap,
                 .family = Family::netdev,
                 .chains = {{Chain::Hook::ingress, std::move(rules), tap}}};
}

std::optional<nft::Table> closed_table(const NetworkPlan& plan,
                                       const std::vector<ip::address>& host) {
    if (!plan.uplink || plan.uplink->kind == UplinkKind::veth || plan.allow_host)
        return std::nullopt;
    using namespace nft;
    std::vector<Rule> rules;
    for (const auto& address : host)
        rules.push_back({OutputInterface{inner_link_name},
                         DestinationNetwork{nft::Network{address}}, Reject{}});
    return Table{.name = "closed", .chains = {{Chain::Hook::forward_filter, std::move(rules)}}};
}

std::optional<nft::Table> host_table(const NetworkPlan& plan, const Borrowed& borrowed) {
    if (!plan.uplink || plan.uplink->kind == UplinkKind::pasta) return std::nullopt;
    const auto& uplink = *plan.uplink;
    using namespace nft;
    const bool flat = plan.mode == Mode::flat;
    std::vector<SourceNetwork> ours{
        {flat ? plan.subnet : ip::network_v4{uplink.inner_address, 32}}};
    if (uplink.ipv6) ours.push_back({only(inner_address6_of(uplink))});
    const InputInterface from{uplink.host_link};
    const OutputInterface to{uplink.host_link};
    // Tied to no uplink: it follows whatever route the host takes.
    const OutputInterface elsewhere{uplink.host_link, true};
    std::vector<Rule> forward;
    // Nobody else has the host for a router because a guest has. What a bridge passes from port to
    // port comes by here as well (net.bridge.bridge-nf-call-iptables).
    const OutputInterface not_guests{std::string{host_link_prefix} + "*", true};
    for (const auto& way : borrowed.ipv4)
        forward.push_back(
            {Ipv4Packet{}, InputInterface{way}, OutputInterface{way, true}, not_guests, Drop{}});
    for (const auto& way : borrowed.ipv6)
        forward.push_back(
            {Ipv6Packet{}, InputInterface{way}, OutputInterface{way, true}, not_guests, Drop{}});
    forward.push_back({from, ClampMss{}});
    forward.push_back({to, ClampMss{}});
    if (plan.port_isolation) forward.push_back({from, to, Drop{}});
    std::vector<Rule> postrouting;
    for (const auto& source : ours) {
        forward.push_back({from, source, Accept{}});
        postrouting.push_back({source, elsewhere, Masquerade{}});
    }
    forward.push_back({from, Drop{}});  // a source made up
    forward.push_back({to, Established{}, Accept{}});
    forward.push_back({to, Drop{}});
    Table table{.name = uplink.host_link, .owned = true, .chains = {}};
    if (!flat && !plan.allow_host)
        // Before NAT: what somebody else has put behind an address of the host is the host's, too.
        table.chains.push_back({Chain::Hook::prerouting_filter,
                                {{from, Established{}, Accept{}},
                                 {from, Icmpv6Type{neighbor_solicitation}, Accept{}},
                                 {from, Icmpv6Type{neighbor_advertisement}, Accept{}},
                                 {from, LocalDestination{}, Reject{}}}});
    table.chains.push_back({Chain::Hook::forward_filter, std::move(forward)});
    table.chains.push_back({Chain::Hook::postrouting_nat, std::move(postrouting)});
    return table;
}

bool is_of_another_network(std::string_view name, std::string_view own) {
    if (!name.starts_with(host_link_prefix)) return false;
    auto id = name.substr(host_link_prefix.size());
    if (id.ends_with(probe_suffix)) id.remove_suffix(probe_suffix.size());
    return id.size() == id_length &&
           id.find_first_not_of("0123456789abcdef") == std::string_view::npos && id != own;
}

std::string trouble_of(const UplinkPlan& uplink, const UplinkState& state) {
    const std::string no_way = "the host has no route to the outside: neither has the guest";
    const std::string way = state.outwards ? "" : no_way;
    const auto ways = !way.empty() || !uplink.ipv6 || state.outwards6
                          ? way
                          : "the host has no IPv6 route to the outside: neither has the guest";
    if (uplink.kind == UplinkKind::pasta) return ways;
    if (!state.link_exists)
        return fmt::format("the VM's link '{}' is not there any more: the guest is cut off",
                           uplink.host_link);
    const auto address = state.inner.to_string();
    if (!state.inwards)
        return fmt::format("the host has no route to {} on '{}' any more: the guest is cut off",
                           address, uplink.host_link);
    if (*state.inwards != uplink.host_link)
        return fmt::format(
            "the host's routes lead what is for {} to '{}' and not to '{}': the guest is cut off",
            address, *state.inwards, uplink.host_link);
    return ways;
}

std::vector<std::string> pasta_command(const NetworkPlan& plan, int space) {
    const auto& uplink = plan.uplink.value();
    std::vector<std::string> command{
        "pasta",
        "--foreground",
        "--quiet",
        "--stderr",
        "--config-net",
        "--netns-only",  // it is root of the namespace already, or of the host
        "--runas=0",
        fmt::format("--netns=/proc/self/fd/{}", space),
        "--no-netns-quit",
        fmt::format("--ns-ifname={}", inner_link_name),
        // Nothing is to be learned from the host's interfaces, which may change, or not be there;
        // but for IPv6 it insists on one with a link-local address.
        fmt::format("--interface={}", uplink.ipv6 ? uplink.interface6 : "lo"),
        fmt::format("--address={}", uplink.inner_address.to_string()),
        fmt::format("--netmask={}", uplink.prefix_length),
        fmt::format("--gateway={}", uplink.host_address.to_string()),
        fmt::format("--mac-addr={}", pasta_mac),
        fmt::format("--mtu={}", plan.mtu),
        "--tcp-ports=none",
        "--udp-ports=none",
        "--tcp-ns=none",
        "--udp-ns=none",
    };
    if (uplink.ipv6) {
        command.push_back(fmt::format("--address={}", inner_address6_of(uplink).to_string()));
        command.push_back(fmt::format("--gateway={}", host_address6_of(uplink).to_string()));
    } else {
        command.emplace_back("--ipv4-only");
    }
    // What is for the gateway reaches the host's own loopback otherwise.
    if (!plan.allow_host) command.emplace_back("--no-map-gw");
    return command;
}

std::vector<std::string> dnsmasq_command(const NetworkPlan& plan, const std::string& directory) {
    const auto subnet = plan.subnet.network().to_string();
    const auto mask = plan.subnet.netmask().to_string();
    std::vector<std::string> command{
        "dnsmasq",
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--pid-file=",
        "--user=root",
        "--group=root",
        "--log-facility=-",
        "--quiet-dhcp",
        fmt::format("--interface={}", lan_interface(plan)),
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-hosts",
        "--no-resolv",
        "--no-ping",
        "--leasefile-ro",
        "--dhcp-authoritative",
        "--dhcp-ignore-clid",
        fmt::format("--dhcp-range={},static,{},12h", subnet, mask),
        fmt::format("--dhcp-hostsfile={}/dhcp-hosts", directory),
        fmt::format("--addn-hosts={}/hosts", directory),
        fmt::format("--dhcp-option=option:router,{}", plan.gateway.to_string()),
        fmt::format("--dhcp-option=option:dns-server,{}", plan.own_address.to_string()),
        fmt::format("--dhcp-option=option:mtu,{}", plan.mtu),
        fmt::format("--domain={}", domain),
        fmt::format("--local=/{}/", domain),
    };
    if (plan.subnet6) {
        // A guest that is alone may also make its addresses up itself (SLAAC); beside others it has
        // the one that it may send from.
        command.emplace_back("--enable-ra");
        command.push_back(fmt::format("--dhcp-range={},static{},64,12h",
                                      plan.subnet6->network().to_string(),
                                      plan.bridged ? "" : ",slaac"));
        command.push_back(
            fmt::format("--dhcp-option=option6:dns-server,[{}]", gateway6_of(plan)->to_string()));
        // Without a way out it is nobody's default router.
        constexpr unsigned interval = 600;
        if (!plan.uplink || !plan.uplink->ipv6)
            command.push_back(fmt::format("--ra-param={},{},0", lan_interface(plan), interval));
    }
    if (plan.uplink) command.push_back(fmt::format("--server=127.0.0.1#{}", dns_relay_port));
    return command;
}

std::string dhcp_hosts(const NetworkPlan& plan, const std::vector<GuestPlan>& guests) {
    std::string text;
    // With its domain, since a bare name can be a keyword there ("ignore").
    for (const auto& guest : guests) {
        const auto address6 = address6_of(plan, guest.address);
        text += fmt::format("{},{}{},{}.{}\n", guest.mac, guest.address.to_string(),
                            address6 ? fmt::format(",[{}]", address6->to_string()) : "", guest.name,
                            domain);
    }
    return text;
}

std::string dns_hosts(const NetworkPlan& plan, const std::vector<GuestPlan>& guests) {
    std::string text;
    const auto add = [&](const ip::address& address, const std::string& name) {
        text += fmt::format("{0} {1} {1}.{2}\n", address.to_string(), name, domain);
    };
    const auto is_free = [&](const std::string& name) {
        return std::none_of(guests.begin(), guests.end(),
                            [&](const auto& guest) { return guest.name == name; });
    };
    for (const auto& guest : guests) {
        add(guest.address, guest.name);
        if (const auto address6 = address6_of(plan, guest.address)) add(*address6, guest.name);
    }
    if (is_free("gateway")) {
        add(plan.gateway, "gateway");
        if (const auto gateway6 = gateway6_of(plan)) add(*gateway6, "gateway");
    }
    if (plan.allow_host && plan.uplink && is_free("host")) {
        add(plan.uplink->host_address, "host");
        if (plan.uplink->ipv6) add(host_address6_of(*plan.uplink), "host");
    }
    return text;
}

std::vector<std::string> describe(const NetworkPlan& plan, const GuestPlan& guest) {
    std::vector<std::string> steps;
    const auto prefix = plan.subnet.prefix_length();
    auto add = [&](std::string step) { steps.push_back(std::move(step)); };
    const auto gateway6 = gateway6_of(plan);
    const auto own =
        fmt::format("{}/{}{}, mtu {}", plan.own_address.to_string(), prefix,
                    gateway6 ? fmt::format(" and {}/64", gateway6->to_string()) : "", plan.mtu);
    add("create a network namespace");
    add(fmt::format("inside: add TAP {} (vnet_hdr, queues {}){}", tap_name, guest.queues,
                    plan.bridged ? "" : " with " + own));
    if (const auto table = guard_table(plan, guest, plan.bridged ? "tap0" : tap_name))
        add("inside: " + nft::to_text(*table));
    const bool veth = plan.uplink && plan.uplink->kind == UplinkKind::veth;
    const auto with6 = [&](const ip::address_v4& address, unsigned length, const auto& address6) {
        return fmt::format("{}/{}{}", address.to_string(), length,
                           plan.uplink->ipv6
                               ? fmt::format(" and {}/127", address6(*plan.uplink).to_string())
                               : "");
    };
    if (veth)
        add(fmt::format("inside: add veth {}, its peer {} on the host", inner_link_name,
                        plan.uplink->host_link));
    if (plan.bridged)
        add(fmt::format("inside: add bridge {} with {}, ports: {}{}", bridge_name, own, tap_name,
                        plan.mode == Mode::flat ? fmt::format(", {}", inner_link_name) : ""));
    if (veth && plan.mode == Mode::nat)
        add(fmt::format(
            "inside: address {} on {}",
            with6(plan.uplink->inner_address, plan.uplink->prefix_length, inner_address6_of),
            inner_link_name));
    if (veth)
        add(fmt::format(
            "inside: default route via {}{}", plan.uplink->host_address.to_string(),
            plan.uplink->ipv6 ? " and " + host_address6_of(*plan.uplink).to_string() : ""));
    add(plan.subnet6 ? "inside: IPv4 and IPv6 forwarding on" : "inside: IPv4 forwarding on");
    if (auto table = inner_table(plan, guest)) add("inside: " + nft::to_text(*table));
    if (veth) {
        add(fmt::format(
            "host: address {} on {}",
            with6(plan.uplink->host_address, plan.uplink->prefix_length, host_address6_of),
            plan.uplink->host_link));
        if (plan.uplink->guests)
            add(fmt::format("host: route to {} via {}", plan.uplink->guests->to_string(),
                            plan.uplink->inner_address.to_string()));
        const auto forwarding = [&](const char* family, const std::vector<std::string>& ways) {
            auto links = plan.uplink->host_link;
            for (const auto& way : ways) links += ", " + way;
            add(fmt::format("host: {} forwarding on {}", family, links));
        };
        forwarding("IPv4", plan.uplink->ways);
        if (plan.uplink->ipv6) forwarding("IPv6", plan.uplink->ways6);
        add("host: " + nft::to_text(*host_table(plan)));
    }
    auto files = "dhcp-hosts: " + dhcp_hosts(plan, {guest}) + "hosts: " + dns_hosts(plan, {guest});
    files.pop_back();
    add("inside: run " + joined(dnsmasq_command(plan, ".")) + "\n" + files);
    if (plan.uplink && !veth) add("host: run " + joined(pasta_command(plan, 3)));
    return steps;
}

}  // namespace qvm::netns
