#include "netns/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <sstream>

#include "netns/error.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

constexpr unsigned smallest_mtu = 576;   // RFC 791: what every IPv4 host must take
constexpr unsigned largest_mtu = 65520;  // a TAP's largest, with the Ethernet header
constexpr unsigned shortest_prefix = 8;
constexpr unsigned longest_prefix = 29;  // gateway, bridge and three guests
constexpr unsigned most_queues = 256;    // MAX_TAP_QUEUES of the kernel

// Where a VPN routes the first, the second is still free.
const std::array<ip::network_v4, 2> default_pools{ip::make_network_v4("10.213.0.0/16"),
                                                  ip::make_network_v4("172.29.0.0/16")};
// The first of these /24s that the host does not use.
const ip::network_v4 first_subnet = ip::make_network_v4("192.168.26.0/24");
const ip::network_v4 subnets = ip::make_network_v4("192.168.0.0/16");

ip::address_v4 nth(const ip::network_v4& network, std::uint32_t n) {
    return ip::address_v4{network.network().to_uint() + n};
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

Claim claim_link(const NetworkSpec& spec, const HostNetwork& host) {
    if (spec.pool) {
        check_network("pool", *spec.pool, 31);
        if (auto claim = claim_from(*spec.pool, 31, host.used)) return std::move(*claim);
        throw Error(fmt::format("pool {}", spec.pool->to_string()),
                    "no /31 in it is free of the host's routes");
    }
    for (const auto& pool : default_pools)
        if (auto claim = claim_from(pool, 31, host.used)) return std::move(*claim);
    throw Error("choose a /31", "the host has routes to all of 10.213.0.0/16 and 172.29.0.0/16");
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

void check_guest_address(const NetworkPlan& plan) {
    const auto text = fmt::format("address {}", plan.guest_address.to_string());
    if (!overlap({plan.guest_address, 32}, plan.subnet))
        throw Error(text, "is not in the subnet " + plan.subnet.to_string());
    if (plan.guest_address == plan.gateway || plan.guest_address == plan.bridge)
        throw Error(text, "is the gateway's");
    if (plan.guest_address == plan.subnet.network() ||
        plan.guest_address == plan.subnet.broadcast())
        throw Error(text, "is the subnet's network or broadcast address");
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

UplinkPlan plan_uplink(const NetworkPlan& plan, const HostNetwork& host, const Claims& claims) {
    UplinkPlan uplink;
    uplink.host_link = "qvm-" + plan.id;
    if (host.uplink) uplink.interface = host.uplink->interface;
    if (plan.mode == Mode::flat) {
        if (!host.uplink)
            throw Error("find the uplink", "the host has no route to the outside for 'flat'");
        uplink.host_address = plan.gateway;
        uplink.inner_address = plan.bridge;
        uplink.prefix_length = plan.subnet.prefix_length();
    } else {
        const auto& link = claims.link.value().network();
        uplink.host_address = nth(link, 0);
        uplink.inner_address = nth(link, 1);
        uplink.prefix_length = link.prefix_length();
    }
    return uplink;
}

}  // namespace

void check_mac(const std::string& mac) {
    const auto step = fmt::format("mac '{}'", mac);
    if (!looks_like_mac(mac)) throw Error(step, "must look like 52:54:00:12:34:56");
    // The lowest bit of the first byte (IEEE 802, group address).
    if (std::stoi(mac.substr(0, 2), nullptr, 16) & 1) throw Error(step, "is a multicast address");
    if (mac == "00:00:00:00:00:00") throw Error(step, "is all zeros");
}

Claims claim_networks(const NetworkSpec& spec, const HostNetwork& host) {
    Claims claims;
    if (spec.mode == Mode::nat) claims.link = claim_link(spec, host);
    if (spec.mode == Mode::flat) claims.subnet = claim_flat_subnet(spec, host);
    return claims;
}

NetworkPlan make_plan(const NetworkSpec& spec, const HostNetwork& host, const Claims& claims) {
    NetworkPlan plan;
    plan.mode = spec.mode;
    plan.id = spec.id;
    plan.mtu = choose_mtu(spec, host);
    plan.subnet = claims.subnet ? claims.subnet->network() : choose_subnet(spec, host);
    check_subnet(plan.subnet, claims);
    plan.gateway = nth(plan.subnet, 1);
    plan.bridge = spec.mode == Mode::flat ? nth(plan.subnet, 2) : plan.gateway;
    plan.guest_name = spec.guest_name;
    const std::uint32_t first_guest = plan.subnet.prefix_length() <= 28 ? 10 : 3;
    plan.guest_address = spec.address.value_or(nth(plan.subnet, first_guest));
    check_guest_address(plan);
    if (spec.mac) check_mac(*spec.mac);
    plan.guest_mac = spec.mac.value_or(default_mac(plan.guest_address));
    plan.queues = spec.queues;
    if (plan.queues < 1 || plan.queues > most_queues)
        throw Error(fmt::format("queues {}", plan.queues),
                    fmt::format("must be 1 to {}", most_queues));
    if (spec.mode != Mode::isolated) plan.uplink = plan_uplink(plan, host, claims);
    return plan;
}

std::optional<nft::Table> inner_table(const NetworkPlan& plan) {
    if (plan.mode != Mode::nat) return std::nullopt;
    const auto& uplink = plan.uplink.value();
    using namespace nft;
    return Table{
        .name = "qvm",
        .chains = {
            {Chain::Hook::prerouting_nat,
             {{InputInterface{inner_link_name}, DestinationAddress{uplink.inner_address},
               Dnat{plan.guest_address}}}},
            {Chain::Hook::postrouting_nat,
             {{OutputInterface{inner_link_name}, SourceNetwork{plan.subnet}, Masquerade{}}}}}};
}

std::optional<nft::Table> host_table(const NetworkPlan& plan) {
    if (!plan.uplink) return std::nullopt;
    const auto& uplink = *plan.uplink;
    using namespace nft;
    // nat follows whatever route the host takes; flat is tied to the uplink that was found.
    const Rule masquerade =
        plan.mode == Mode::flat
            ? Rule{SourceNetwork{plan.subnet}, OutputInterface{uplink.interface}, Masquerade{}}
            : Rule{SourceNetwork{{uplink.inner_address, 32}},
                   OutputInterface{uplink.host_link, true}, Masquerade{}};
    const SourceNetwork ours{plan.mode == Mode::flat ? plan.subnet
                                                     : ip::network_v4{uplink.inner_address, 32}};
    return Table{.name = uplink.host_link,
                 .owned = true,
                 .chains = {{Chain::Hook::forward_filter,
                             {{InputInterface{uplink.host_link}, ours, Accept{}},
                              {InputInterface{uplink.host_link}, Drop{}},  // a source made up
                              {OutputInterface{uplink.host_link}, Established{}, Accept{}},
                              {OutputInterface{uplink.host_link}, Drop{}}}},
                            {Chain::Hook::postrouting_nat, {masquerade}}}};
}

std::vector<std::string> dnsmasq_command(const NetworkPlan& plan) {
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
        fmt::format("--interface={}", bridge_name),
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-hosts",
        "--no-resolv",
        "--no-ping",
        "--leasefile-ro",
        "--dhcp-authoritative",
        "--dhcp-ignore-clid",
        fmt::format("--dhcp-range={},static,{},12h", subnet, mask),
        // With its domain, since a bare name can be a keyword there ("ignore").
        fmt::format("--dhcp-host={},{},{}.{}", plan.guest_mac, plan.guest_address.to_string(),
                    plan.guest_name, domain),
        fmt::format("--dhcp-option=option:router,{}", plan.gateway.to_string()),
        fmt::format("--dhcp-option=option:dns-server,{}", plan.bridge.to_string()),
        fmt::format("--dhcp-option=option:mtu,{}", plan.mtu),
        fmt::format("--domain={}", domain),
        fmt::format("--local=/{}/", domain),
        fmt::format("--host-record={0},{0}.{1},{2}", plan.guest_name, domain,
                    plan.guest_address.to_string()),
    };
    if (plan.guest_name != "gateway")
        command.push_back(
            fmt::format("--host-record=gateway,gateway.{},{}", domain, plan.gateway.to_string()));
    if (plan.uplink) command.push_back(fmt::format("--server=127.0.0.1#{}", dns_relay_port));
    return command;
}

std::vector<std::string> describe(const NetworkPlan& plan) {
    std::vector<std::string> steps;
    const auto prefix = plan.subnet.prefix_length();
    auto add = [&](std::string step) { steps.push_back(std::move(step)); };
    add("create a network namespace");
    add(fmt::format("inside: add TAP {} (vnet_hdr, queues {})", tap_name, plan.queues));
    if (plan.uplink)
        add(fmt::format("inside: add veth {}, its peer {} on the host", inner_link_name,
                        plan.uplink->host_link));
    add(fmt::format("inside: add bridge {} with {}/{}, mtu {}, ports: {}{}", bridge_name,
                    plan.bridge.to_string(), prefix, plan.mtu, tap_name,
                    plan.mode == Mode::flat ? fmt::format(", {}", inner_link_name) : ""));
    if (plan.mode == Mode::nat)
        add(fmt::format("inside: address {}/{} on {}", plan.uplink->inner_address.to_string(),
                        plan.uplink->prefix_length, inner_link_name));
    if (plan.uplink)
        add(fmt::format("inside: default route via {}", plan.uplink->host_address.to_string()));
    add("inside: IPv4 forwarding on");
    if (auto table = inner_table(plan)) add("inside: " + nft::to_text(*table));
    if (plan.uplink) {
        add(fmt::format("host: address {}/{} on {}", plan.uplink->host_address.to_string(),
                        plan.uplink->prefix_length, plan.uplink->host_link));
        add(fmt::format("host: IPv4 forwarding on {}{}{}", plan.uplink->host_link,
                        plan.uplink->interface.empty() ? "" : " and ", plan.uplink->interface));
        add("host: " + nft::to_text(*host_table(plan)));
    }
    std::ostringstream dnsmasq;
    for (const auto& word : dnsmasq_command(plan)) dnsmasq << ' ' << word;
    add("inside: run" + dnsmasq.str());
    return steps;
}

}  // namespace qvm::netns
