#include "netns/network.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <thread>

#include "netns/error.h"
#include "netns/links.h"
#include "netns/tap.h"

namespace qvm::netns {

namespace {

// The TAP is the first device of its namespace after lo, and the others are given their indexes.
constexpr int loopback_index = 1;
constexpr int inner_link_index = 100;
constexpr int bridge_index = 101;
constexpr const char* bridge_mac = "52:54:00:00:00:01";

std::vector<Request> inside_requests(const NetworkPlan& plan, int tap_index, int host_namespace) {
    std::vector<Request> requests;
    const bool flat = plan.mode == Mode::flat;
    requests.push_back(set_up("lo", loopback_index));
    if (plan.uplink)
        requests.push_back(add_veth(inner_link_name, inner_link_index, plan.uplink->host_link,
                                    host_namespace, plan.mtu));
    requests.push_back(add_bridge(bridge_name, bridge_index, bridge_mac, plan.mtu));
    requests.push_back(set_up(tap_name, tap_index, bridge_index, plan.mtu));
    requests.push_back(
        add_address(bridge_name, bridge_index, plan.bridge, plan.subnet.prefix_length()));
    requests.push_back(set_up(bridge_name, bridge_index));
    if (!plan.uplink) return requests;
    if (!flat)
        requests.push_back(add_address(inner_link_name, inner_link_index,
                                       plan.uplink->inner_address, plan.uplink->prefix_length));
    requests.push_back(set_up(inner_link_name, inner_link_index, flat ? bridge_index : 0));
    requests.push_back(
        add_default_route(flat ? bridge_index : inner_link_index, plan.uplink->host_address));
    return requests;
}

/// A socket of the calling thread's namespace, bound to the DNS relay's address there.
UniqueFd bind_dns(int type) {
    const std::string step = "bind the DNS relay inside the namespace";
    UniqueFd fd{check(::socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), step)};
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(dns_relay_port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), step);
    if (type == SOCK_STREAM) check(::listen(fd.get(), SOMAXCONN), step);
    return fd;
}

}  // namespace

Network::Network(const NetworkPlan& plan, Claims claims, RouteSocket& host,
                 const std::filesystem::path& forwarding_directory,
                 const std::function<void()>& namespace_ready)
    : claims_(std::move(claims)),
      host_(host),
      space_(create_space(plan, forwarding_directory, namespace_ready)) {
    if (plan.uplink) build_uplink(*plan.uplink);
}

Namespace Network::create_space(const NetworkPlan& plan,
                                const std::filesystem::path& forwarding_directory,
                                const std::function<void()>& namespace_ready) {
    const auto host_space = Namespace::current();
    const auto inside = [&] {
        if (namespace_ready) namespace_ready();
        build_inside(plan, host_space);
    };
    return Namespace::create(inside, [&] { prepare_host(plan, forwarding_directory); });
}

/// What the host needs and what does not wait for the veth: rules name it before it is there.
void Network::prepare_host(const NetworkPlan& plan,
                           const std::filesystem::path& forwarding_directory) {
    if (const auto table = host_table(plan)) host_rules_.emplace().commit(*table);
    if (plan.uplink && !plan.uplink->interface.empty())
        forwarding_.emplace(forwarding_directory, plan.uplink->interface);
}

void Network::build_inside(const NetworkPlan& plan, const Namespace& host_space) {
    tap_ = open_tap(tap_name, plan.queues);
    vhost_ = open_vhost(plan.queues);
    RouteSocket inside;
    inside.transact(inside_requests(plan, interface_index(tap_name), host_space.fd()));
    enable_forwarding();
    if (auto table = inner_table(plan)) inner_rules_.emplace().commit(*table);
    if (!plan.uplink) return;
    dns_udp_ = bind_dns(SOCK_DGRAM);
    dns_tcp_ = bind_dns(SOCK_STREAM);
}

void Network::build_uplink(const UplinkPlan& uplink) {
    host_link_ = uplink.host_link;
    host_link_index_ = interface_index(uplink.host_link);
    std::vector<Request> requests;
    requests.push_back(
        add_address(uplink.host_link, host_link_index_, uplink.host_address, uplink.prefix_length));
    requests.push_back(set_up(uplink.host_link, host_link_index_));
    host_.transact(std::move(requests));
    enable_forwarding(uplink.host_link);
}

void Network::detach() noexcept {
    forwarding_.reset();
    if (host_link_index_ == 0) return;
    // Each of these waits for the kernel's RCU, and none for another.
    const std::jthread rules([this] {
        host_rules_.reset();
        inner_rules_.reset();
    });
    try {
        std::vector<Request> requests;
        requests.push_back(delete_link(host_link_, std::exchange(host_link_index_, 0)));
        host_.transact(std::move(requests));
    } catch (const std::exception&) {
        // Gone already, or it goes with the namespace.
    }
}

Network::~Network() {
    detach();
}

}  // namespace qvm::netns
