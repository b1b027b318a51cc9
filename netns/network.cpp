#include "netns/network.h"

#include <fmt/format.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <iterator>
#include <thread>

#include "netns/error.h"
#include "netns/links.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

// The TAP is the first device of its namespace after lo, and the others are given their indexes.
constexpr int loopback_index = 1;
constexpr int inner_link_index = 100;
constexpr int bridge_index = 101;
constexpr unsigned uplink_prefix6 = 127;  // RFC 6164
constexpr unsigned link_prefix6 = 64;
constexpr std::chrono::milliseconds bind_pause{2};
constexpr int most_bind_tries = 250;
constexpr const char* tap_names = "tap%d";  // of guests that share a bridge
// The guests' router: the same in every namespace, since a guest that was saved in one remembers
// it.
constexpr const char* router_mac = "52:54:00:00:00:01";

bool has_veth(const NetworkPlan& plan) {
    return plan.uplink && plan.uplink->kind == UplinkKind::veth;
}

/// The LAN without its guests: the bridge where there is one, and the uplink.
std::vector<Request> inside_requests(const NetworkPlan& plan, int host_namespace) {
    std::vector<Request> requests;
    requests.push_back(set_up("lo", loopback_index));
    if (has_veth(plan))
        requests.push_back(add_veth(inner_link_name, inner_link_index, plan.uplink->host_link,
                                    host_namespace, plan.mtu));
    if (!plan.bridged) return requests;
    requests.push_back(add_bridge(bridge_name, bridge_index, router_mac, plan.mtu));
    return requests;
}

std::vector<Request> address_requests(const NetworkPlan& plan, int tap_index) {
    std::vector<Request> requests;
    const int lan_index = plan.bridged ? bridge_index : tap_index;
    requests.push_back(
        add_address(lan_interface(plan), lan_index, plan.own_address, plan.subnet.prefix_length()));
    if (const auto gateway6 = gateway6_of(plan)) {
        if (plan.bridged) requests.push_back(without_link_local(bridge_name, bridge_index));
        requests.push_back(
            add_address(lan_interface(plan), lan_index, *gateway6, plan.subnet6->prefix_length()));
        requests.push_back(
            add_address(lan_interface(plan), lan_index, router_link_local(), link_prefix6));
    }
    if (plan.bridged) requests.push_back(set_up(bridge_name, bridge_index));
    if (!has_veth(plan)) return requests;
    const bool flat = plan.mode == Mode::flat;
    if (!flat)
        requests.push_back(add_address(inner_link_name, inner_link_index,
                                       plan.uplink->inner_address, plan.uplink->prefix_length));
    requests.push_back(set_up(inner_link_name, inner_link_index, flat ? bridge_index : 0));
    requests.push_back(add_route(ip::address_v4::any(), 0, flat ? bridge_index : inner_link_index,
                                 plan.uplink->host_address));
    if (!plan.uplink->ipv6) return requests;
    requests.push_back(add_address(inner_link_name, inner_link_index,
                                   inner_address6_of(*plan.uplink), uplink_prefix6));
    requests.push_back(
        add_route(ip::address_v6::any(), 0, inner_link_index, host_address6_of(*plan.uplink)));
    return requests;
}

/// A socket of the calling thread's namespace, bound to the DNS relay's address there.
UniqueFd bind_dns_socket(int type) {
    const std::string step = "bind the DNS relay inside the namespace";
    UniqueFd fd{check(::socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), step)};
    const int on = 1;  // connections of a relay before us may linger
    check(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), step);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(dns_relay_port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), step);
    if (type == SOCK_STREAM) check(::listen(fd.get(), SOMAXCONN), step);
    return fd;
}

Network::DnsSockets bind_dns_sockets() {
    return {bind_dns_socket(SOCK_DGRAM), bind_dns_socket(SOCK_STREAM)};
}

}  // namespace

Network::Network(const NetworkPlan& plan, const GuestPlan& guest, Claims claims, RouteSocket& host,
                 const std::filesystem::path& forwarding_directory,
                 const std::function<void()>& namespace_ready)
    : claims_(std::move(claims)),
      host_(host),
      plan_(plan),
      forwarding_(forwarding_directory, ForwardingLease::Family::ipv4),
      forwarding6_(forwarding_directory, ForwardingLease::Family::ipv6),
      space_(create_space(plan, guest, namespace_ready)) {
    if (has_veth(plan)) build_uplink();
    close_host();
}

Network::Network(const NetworkPlan& plan, const GuestPlan& guest, std::vector<UniqueFd> shared,
                 RouteSocket& host, const std::filesystem::path& forwarding_directory)
    : host_(host),
      plan_(plan),
      forwarding_(forwarding_directory, ForwardingLease::Family::ipv4),
      forwarding6_(forwarding_directory, ForwardingLease::Family::ipv6),
      space_(std::move(shared.at(0))) {
    space_.run([&] { add_tap(plan, guest); });
    if (!has_veth(plan)) return;
    host_rules_.emplace(std::move(shared.at(1)));
    std::move(shared.begin() + 2, shared.end(), std::back_inserter(joined_));
    host_link_index_ = interface_index(uplink_->host_link);
    // Not by the plan, which is as old as the first member.
    lease_forwarding(find_ways(host_), find_ways6(host_), ForwardingLease::default_patience);
}

std::vector<int> Network::shared() const {
    std::vector<int> result{space_.fd()};
    if (host_rules_) result.push_back(host_rules_->fd());
    for (const auto* claim : {&claims_.link, &claims_.subnet})
        if (*claim) result.push_back((*claim)->fd());
    for (const auto& fd : joined_) result.push_back(fd.get());
    return result;
}

Namespace Network::create_space(const NetworkPlan& plan, const GuestPlan& guest,
                                const std::function<void()>& namespace_ready) {
    const auto host_space = Namespace::current();
    const auto inside = [&] {
        if (namespace_ready) namespace_ready();
        build_inside(plan, guest, host_space);
    };
    return Namespace::create(inside, [&] { prepare_host(plan); });
}

/// What the host needs and what does not wait for the veth: rules name it before it is there.
void Network::prepare_host(const NetworkPlan& plan) {
    if (!has_veth(plan)) return;
    lease_forwarding(plan.uplink->ways, plan.uplink->ways6, ForwardingLease::default_patience);
    borrowed_ = Borrowed{forwarding_.borrowed(), forwarding6_.borrowed()};
    host_rules_.emplace().commit(host_table(plan, *borrowed_).value());
}

void Network::lease_forwarding(const std::vector<std::string>& ways,
                               const std::vector<std::string>& ways6,
                               std::chrono::milliseconds patience) {
    forwarding_.hold(ways, patience);
    const bool by_interface =
        uplink_->ipv6 && read_ipv6_forwarding() == Ipv6Forwarding::by_interface;
    forwarding6_.hold(by_interface ? ways6 : std::vector<std::string>{}, patience);
}

/// Its rules are there before it can receive anything.
std::vector<Request> Network::open_port(const NetworkPlan& plan, const GuestPlan& guest) {
    tap_ = open_tap(plan.bridged ? tap_names : tap_name, guest.queues);
    vhost_ = open_vhost(guest.queues);
    const int index = interface_index(tap_.name);
    inner_rules_.emplace();
    // A member of a group that has left leaves an empty one of that name behind.
    if (const auto guard = guard_table(plan, guest, tap_.name)) inner_rules_->replace(*guard);
    std::vector<Request> requests;
    if (!plan.bridged) requests.push_back(set_mac(tap_.name, index, router_mac));
    if (plan.subnet6) requests.push_back(without_link_local(tap_.name, index));
    requests.push_back(set_up(tap_.name, index, plan.bridged ? bridge_index : 0, plan.mtu));
    if (plan.port_isolation) requests.push_back(isolate_port(tap_.name, index));
    return requests;
}

/// The host's addresses come and go.
void Network::close_host() {
    if (!closed_table(plan_, {})) return;
    auto addresses = read_host_addresses(host_);
    if (addresses == closed_) return;
    space_.run([&] {
        if (!inner_rules_) inner_rules_.emplace();
        inner_rules_->replace(closed_table(plan_, addresses).value());
    });
    closed_ = std::move(addresses);
}

void Network::build_inside(const NetworkPlan& plan, const GuestPlan& guest,
                           const Namespace& host_space) {
    auto port = open_port(plan, guest);
    if (const auto table = inner_table(plan, guest)) inner_rules_->commit(*table);
    auto requests = inside_requests(plan, host_space.fd());
    for (auto& request : port) requests.push_back(std::move(request));
    for (auto& request : address_requests(plan, interface_index(tap_.name)))
        requests.push_back(std::move(request));
    RouteSocket inside;
    inside.transact(std::move(requests));
    enable_forwarding();
    if (plan.subnet6) enable_forwarding6();
    if (plan.uplink) dns_ = bind_dns_sockets();
}

/// Inside a network that is there already.
void Network::add_tap(const NetworkPlan& plan, const GuestPlan& guest) {
    auto requests = open_port(plan, guest);
    RouteSocket inside;
    inside.transact(std::move(requests));
}

void Network::bind_dns() {
    space_.run([this] {
        // A member that was killed lets go of its lock a moment before its sockets.
        for (int tries = 0;; ++tries) try {
                dns_ = bind_dns_sockets();
                return;
            } catch (const Error& error) {
                if (error.error() != EADDRINUSE || tries == most_bind_tries) throw;
                std::this_thread::sleep_for(bind_pause);
            }
    });
}

void Network::build_uplink() {
    host_link_index_ = interface_index(uplink_->host_link);
    host_.transact(host_requests());
    enable_host_link();
}

void Network::enable_host_link() {
    enable_forwarding(uplink_->host_link);
    if (uplink_->ipv6 && read_ipv6_forwarding() == Ipv6Forwarding::by_interface)
        enable_forwarding6(uplink_->host_link);
}

/// What makes the host end the guests' way to the host.
std::vector<Request> Network::host_requests() const {
    std::vector<Request> requests;
    requests.push_back(add_address(uplink_->host_link, host_link_index_, uplink_->host_address,
                                   uplink_->prefix_length));
    requests.push_back(set_up(uplink_->host_link, host_link_index_));
    if (uplink_->guests)
        requests.push_back(add_route(uplink_->guests->network(), uplink_->guests->prefix_length(),
                                     host_link_index_, uplink_->inner_address));
    if (uplink_->ipv6)
        requests.push_back(add_address(uplink_->host_link, host_link_index_,
                                       host_address6_of(*uplink_), uplink_prefix6));
    return requests;
}

UplinkState Network::look_at_host() const {
    UplinkState state;
    if (const auto found = find_uplink(host_)) state.outwards = found->interface;
    if (const auto found = uplink_->ipv6 ? find_uplink6(host_) : std::nullopt)
        state.outwards6 = found->interface;
    if (uplink_->kind == UplinkKind::pasta) return state;
    const auto index = ::if_nametoindex(uplink_->host_link.c_str());
    if (index == 0 && errno != ENODEV) throw Error("look for the VM's link", errno);
    state.link_exists = index == static_cast<unsigned>(host_link_index_);
    if (!state.link_exists) return state;
    const auto look_inwards = [&](const boost::asio::ip::address_v4& address) {
        state.inner = address;
        state.inwards = interface_towards(host_, address);
        return state.inwards == uplink_->host_link;
    };
    if (look_inwards(uplink_->inner_address) && uplink_->guests)
        look_inwards(uplink_->guests->broadcast());  // the /31 is at its beginning
    return state;
}

/// It is ours, and whoever took it down or cleared it of addresses took it for something else.
/// What is there already is not touched.
void Network::repair_host_end() {
    for (auto& request : host_requests()) {
        std::vector<Request> one;
        one.push_back(std::move(request));
        try {
            host_.transact(std::move(one));
        } catch (const Error&) {
            // It is there, or look_at_host() says what is wrong.
        }
    }
}

std::string Network::follow_host() {
    const bool pasta = uplink_ && uplink_->kind == UplinkKind::pasta;
    if (host_link_index_ == 0 && !pasta) return {};
    close_host();
    auto state = look_at_host();
    if (pasta) return trouble_of(*uplink_, state);
    if (state.link_exists && state.inwards != uplink_->host_link) {
        repair_host_end();
        state = look_at_host();
    }
    if (state.link_exists) enable_host_link();
    lease_forwarding(find_ways(host_),
                     uplink_->ipv6 ? find_ways6(host_) : std::vector<std::string>{},
                     std::chrono::milliseconds{0});
    guard_ways();
    return trouble_of(*uplink_, state);
}

void Network::lead() {
    if (host_link_index_ == 0) return;
    borrowed_ = Borrowed{forwarding_.borrowed(), forwarding6_.borrowed()};
    host_rules_->replace(host_table(plan_, *borrowed_).value());
}

/// Whether others use the host as a router changes; in a group, who leads follows it.
void Network::guard_ways() {
    if (!borrowed_) return;
    Borrowed borrowed{forwarding_.borrowed(), forwarding6_.borrowed()};
    if (borrowed == *borrowed_) return;
    host_rules_->replace(host_table(plan_, borrowed).value());
    borrowed_ = std::move(borrowed);
}

std::optional<Obstacle> Network::probe(std::chrono::milliseconds patience) {
    if (!uplink_) return std::nullopt;
    if (!probe_sockets_) probe_sockets_.emplace();
    const auto by = [&](const ip::address& outside) {
        return netns::probe(space_, plan_, outside, *probe_sockets_, patience);
    };
    std::optional<Obstacle> obstacle;
    if (find_uplink(host_)) obstacle = by(outside_address());
    if (!obstacle && uplink_->ipv6 && find_uplink6(host_)) obstacle = by(outside_address6());
    return obstacle;
}

void Network::detach() noexcept {
    try {
        forwarding_.hold({}, ForwardingLease::default_patience);
        forwarding6_.hold({}, ForwardingLease::default_patience);
    } catch (const std::exception&) {
        // Left to the next sweep.
    }
    if (host_link_index_ == 0) return;
    try {
        // Both wait, and neither for the other.
        const std::jthread rules([this] {
            try {
                host_rules_->remove(uplink_->host_link);
            } catch (const std::exception&) {
                // It goes with the socket.
            }
        });
        std::vector<Request> requests;
        requests.push_back(delete_link(uplink_->host_link, std::exchange(host_link_index_, 0)));
        host_.transact(std::move(requests));
    } catch (const std::exception&) {
        // Gone already, or it goes with the namespace.
    }
}

Network::~Network() {
    // A guest that joined and did not get far takes nothing from those who were there before it.
    if (!joined_.empty()) leave_to_others();
    detach();
}

}  // namespace qvm::netns
