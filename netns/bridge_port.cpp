#include "netns/bridge_port.h"

#include <fmt/format.h>
#include <netlink/errno.h>
#include <netlink/route/link.h>

#include "netns/error.h"
#include "netns/links.h"
#include "netns/plan.h"

namespace qvm::netns {

namespace {

/// The highest there is: a bridge without a MAC of its own takes the lowest of its ports', and
/// should go on with the one that it has.
std::string tap_mac(const std::string& mac) {
    return "fe" + mac.substr(2);
}

}  // namespace

unsigned read_bridge_mtu(RouteSocket& host, const std::string& bridge) {
    const auto step = fmt::format("bridge '{}'", bridge);
    rtnl_link* raw = nullptr;
    const int error = rtnl_link_get_kernel(host.get(), 0, bridge.c_str(), &raw);
    if (error == -NLE_NODEV || error == -NLE_OBJ_NOTFOUND)
        throw Error(step, "there is no such interface");
    if (error < 0) throw Error(step, nl_geterror(error));
    const std::unique_ptr<rtnl_link, Deleter<rtnl_link_put>> link{raw};
    const char* type = rtnl_link_get_type(link.get());
    if (type == nullptr || std::string_view{type} != "bridge")
        throw Error(step, "the interface is not a bridge");
    return rtnl_link_get_mtu(link.get());
}

std::optional<nft::Table> guard_table(const PortPlan& plan) {
    if (!plan.port_security) return std::nullopt;
    return nft::Table{.name = plan.link,
                      .family = nft::Family::netdev,
                      .owned = true,
                      .chains = {{nft::Chain::Hook::ingress, guard_rules(plan.mac), plan.link}}};
}

std::vector<std::string> describe(const PortPlan& plan) {
    std::vector<std::string> steps{fmt::format("host: add TAP {} (vnet_hdr, queues {}), mtu {}",
                                               plan.link, plan.queues, plan.mtu)};
    if (const auto table = guard_table(plan)) steps.push_back("host: " + nft::to_text(*table));
    steps.push_back(fmt::format("host: make it a port of bridge {}", plan.bridge));
    return steps;
}

BridgePort::BridgePort(const PortPlan& plan, RouteSocket& host)
    : tap_(open_tap(plan.link, plan.queues)), vhost_(open_vhost(plan.queues)) {
    const int index = interface_index(plan.link);
    if (const auto table = guard_table(plan)) rules_.commit(*table);
    std::vector<Request> requests;
    if (has_ipv6()) requests.push_back(without_link_local(plan.link, index));
    requests.push_back(set_mac(plan.link, index, tap_mac(plan.mac)));
    requests.push_back(set_up(plan.link, index, interface_index(plan.bridge), plan.mtu));
    host.transact(std::move(requests));
}

}  // namespace qvm::netns
