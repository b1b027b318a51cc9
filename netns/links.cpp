#include "netns/links.h"

#include <fmt/format.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/addr.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/link/bridge.h>
#include <netlink/route/link/inet6.h>
#include <netlink/route/link/veth.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>

#include "netns/error.h"

namespace qvm::netns {

namespace {

using Link = std::unique_ptr<rtnl_link, Deleter<rtnl_link_put>>;
using LinkAddress = std::unique_ptr<nl_addr, Deleter<nl_addr_put>>;
using InterfaceAddress = std::unique_ptr<rtnl_addr, Deleter<rtnl_addr_put>>;
using Route = std::unique_ptr<rtnl_route, Deleter<rtnl_route_put>>;

template <typename T>
T allocated(T object, const std::string& step) {
    if (!object) throw Error(step, ENOMEM);
    return object;
}

/// Turns what a libnl rtnl_*_build_*_request() function returned into a Request.
Request built(int error, nl_msg* message, std::string step) {
    if (error < 0) throw Error(step, nl_geterror(error));
    return {NlMessage{message}, std::move(step)};
}

Request add_request(rtnl_link* link, std::string step) {
    nl_msg* message = nullptr;
    const int error = rtnl_link_build_add_request(link, NLM_F_CREATE | NLM_F_EXCL, &message);
    return built(error, message, std::move(step));
}

LinkAddress to_nl(const boost::asio::ip::address& address, const std::string& step) {
    LinkAddress result;
    if (address.is_v4()) {
        const auto bytes = address.to_v4().to_bytes();
        result.reset(nl_addr_build(AF_INET, bytes.data(), bytes.size()));
    } else {
        const auto bytes = address.to_v6().to_bytes();
        result.reset(nl_addr_build(AF_INET6, bytes.data(), bytes.size()));
    }
    return allocated(std::move(result), step);
}

LinkAddress parse_mac(const std::string& mac, const std::string& step) {
    nl_addr* address = nullptr;
    if (const int error = nl_addr_parse(mac.c_str(), AF_LLC, &address); error < 0)
        throw Error(step, fmt::format("MAC '{}': {}", mac, nl_geterror(error)));
    return LinkAddress{address};
}

/// What is set in `change` of a link that exists: RTM_NEWLINK without NLM_F_CREATE.
Request change_request(rtnl_link* change, std::string step) {
    nl_msg* message = nullptr;
    const int error = rtnl_link_build_add_request(change, 0, &message);
    return built(error, message, std::move(step));
}

}  // namespace

Request add_veth(const std::string& name, int index, const std::string& peer, int peer_namespace,
                 unsigned mtu) {
    auto step = fmt::format("add veth '{}' with peer '{}'", name, peer);
    auto link = allocated(Link{rtnl_link_veth_alloc()}, step);
    rtnl_link_set_name(link.get(), name.c_str());
    rtnl_link_set_ifindex(link.get(), index);
    rtnl_link_set_mtu(link.get(), mtu);
    auto* other = rtnl_link_veth_get_peer(link.get());
    rtnl_link_set_name(other, peer.c_str());
    rtnl_link_set_mtu(other, mtu);
    rtnl_link_set_ns_fd(other, peer_namespace);
    rtnl_link_put(other);
    return add_request(link.get(), std::move(step));
}

Request add_bridge(const std::string& name, int index, const std::string& mac, unsigned mtu) {
    auto step = fmt::format("add bridge '{}'", name);
    auto link = allocated(Link{rtnl_link_bridge_alloc()}, step);
    const auto address = parse_mac(mac, step);
    rtnl_link_set_name(link.get(), name.c_str());
    rtnl_link_set_ifindex(link.get(), index);
    rtnl_link_set_addr(link.get(), address.get());
    rtnl_link_set_mtu(link.get(), mtu);
    return add_request(link.get(), std::move(step));
}

Request set_up(const std::string& name, int index, int master, unsigned mtu) {
    auto step = fmt::format("set '{}' up", name);
    auto change = allocated(Link{rtnl_link_alloc()}, step);
    rtnl_link_set_ifindex(change.get(), index);
    rtnl_link_set_flags(change.get(), IFF_UP);
    if (master != 0) rtnl_link_set_master(change.get(), master);
    if (mtu != 0) rtnl_link_set_mtu(change.get(), mtu);
    return change_request(change.get(), std::move(step));
}

Request set_mac(const std::string& name, int index, const std::string& mac) {
    auto step = fmt::format("give '{}' a MAC", name);
    auto change = allocated(Link{rtnl_link_alloc()}, step);
    const auto address = parse_mac(mac, step);
    rtnl_link_set_ifindex(change.get(), index);
    rtnl_link_set_addr(change.get(), address.get());
    return change_request(change.get(), std::move(step));
}

Request without_link_local(const std::string& name, int index) {
    auto step = fmt::format("keep '{}' from an address of its own", name);
    auto change = allocated(Link{rtnl_link_alloc()}, step);
    rtnl_link_set_ifindex(change.get(), index);
    rtnl_link_inet6_set_addr_gen_mode(change.get(), IN6_ADDR_GEN_MODE_NONE);
    return change_request(change.get(), std::move(step));
}

Request isolate_port(const std::string& name, int index) {
    auto step = fmt::format("isolate port '{}'", name);
    NlMessage message{nlmsg_alloc_simple(RTM_SETLINK, 0)};
    ifinfomsg header{};
    header.ifi_family = AF_BRIDGE;
    header.ifi_index = index;
    nlattr* nest = nullptr;
    if (!message || nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO) < 0 ||
        (nest = nla_nest_start(message.get(), IFLA_PROTINFO | NLA_F_NESTED)) == nullptr ||
        nla_put_u8(message.get(), IFLA_BRPORT_ISOLATED, 1) < 0)
        throw Error(step, ENOMEM);
    nla_nest_end(message.get(), nest);
    return {std::move(message), std::move(step)};
}

Request add_address(const std::string& name, int index, const boost::asio::ip::address& address,
                    unsigned prefix_length) {
    auto step = fmt::format("add address {}/{} to '{}'", address.to_string(), prefix_length, name);
    auto local = to_nl(address, step);
    nl_addr_set_prefixlen(local.get(), static_cast<int>(prefix_length));
    auto request = allocated(InterfaceAddress{rtnl_addr_alloc()}, step);
    rtnl_addr_set_ifindex(request.get(), index);
    rtnl_addr_set_local(request.get(), local.get());
    if (address.is_v6()) rtnl_addr_set_flags(request.get(), IFA_F_NODAD);
    nl_msg* message = nullptr;
    const int error =
        rtnl_addr_build_add_request(request.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
    return built(error, message, std::move(step));
}

Request add_route(const boost::asio::ip::address& network, unsigned prefix_length, int index,
                  const boost::asio::ip::address& gateway) {
    const auto what = prefix_length == 0
                          ? "default route"
                          : fmt::format("route to {}/{}", network.to_string(), prefix_length);
    auto step = fmt::format("add {} via {}", what, gateway.to_string());
    auto via = to_nl(gateway, step);
    auto destination = to_nl(network, step);
    nl_addr_set_prefixlen(destination.get(), static_cast<int>(prefix_length));
    auto route = allocated(Route{rtnl_route_alloc()}, step);
    auto* hop = rtnl_route_nh_alloc();
    if (hop == nullptr) throw Error(step, ENOMEM);
    rtnl_route_nh_set_ifindex(hop, index);
    rtnl_route_nh_set_gateway(hop, via.get());
    rtnl_route_add_nexthop(route.get(), hop);
    rtnl_route_set_dst(route.get(), destination.get());
    nl_msg* message = nullptr;
    const int error =
        rtnl_route_build_add_request(route.get(), NLM_F_CREATE | NLM_F_EXCL, &message);
    return built(error, message, std::move(step));
}

Request delete_link(const std::string& name, int index) {
    auto step = fmt::format("delete '{}'", name);
    auto link = allocated(Link{rtnl_link_alloc()}, step);
    rtnl_link_set_ifindex(link.get(), index);
    nl_msg* message = nullptr;
    const int error = rtnl_link_build_delete_request(link.get(), &message);
    return built(error, message, std::move(step));
}

}  // namespace qvm::netns
