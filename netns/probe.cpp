#include "netns/probe.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/ip/udp.hpp>
#include <utility>

#include "netns/error.h"
#include "netns/host_network.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint16_t probe_port = 1;  // tcpmux's (RFC 1078), which is TCP's only

std::string table_name(const NetworkPlan& plan) {
    return host_link_name(plan.id) + std::string{probe_suffix};
}

bool is_of_host(const NetworkPlan& plan) {
    return plan.uplink.value().kind == UplinkKind::pasta;
}

/// Where a probe to `outside` comes from.
ip::address source_of(const NetworkPlan& plan, const ip::address& outside) {
    const auto& uplink = plan.uplink.value();
    if (outside.is_v6())
        return is_of_host(plan) ? ip::address{ip::address_v6::any()} : inner_address6_of(uplink);
    if (is_of_host(plan)) return ip::address_v4::any();
    return plan.mode == Mode::flat ? plan.own_address : uplink.inner_address;
}

constexpr const char* send_step = "send a probe";

/// A UDP socket of the calling thread's namespace, and its port.
std::pair<UniqueFd, std::uint16_t> bind_socket(const ip::address& source) {
    const int family = source.is_v4() ? AF_INET : AF_INET6;
    UniqueFd socket{check(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), send_step)};
    ip::udp::endpoint own{source, 0};
    check(::bind(socket.get(), own.data(), static_cast<socklen_t>(own.size())), send_step);
    auto length = static_cast<socklen_t>(own.capacity());
    check(::getsockname(socket.get(), own.data(), &length), send_step);
    return {std::move(socket), own.port()};
}

void send(const UniqueFd& socket, const ip::address& outside) {
    const ip::udp::endpoint to{outside, probe_port};
    const auto sent =
        ::sendto(socket.get(), "", 0, 0, to.data(), static_cast<socklen_t>(to.size()));
    // Of what an output chain drops the sender is told: EPERM, or as its reject has it.
    if (sent < 0 && errno != EPERM && errno != ECONNREFUSED && errno != EHOSTUNREACH &&
        errno != EACCES)
        throw Error(send_step, errno);
}

}  // namespace

nft::Table probe_table(const NetworkPlan& plan, const ip::address& outside,
                       std::uint16_t source_port) {
    using namespace nft;
    const SourcePort from{source_port};
    const DestinationNetwork to{Network{outside}};
    const DestinationPort port{probe_port};
    Rule first{from, to, port, Trace{}};
    Rule last{from, to, port, Drop{}};
    // NAT may have given it another port on its way.
    if (!is_of_host(plan)) last.front() = first.front() = InputInterface{plan.uplink->host_link};
    const auto begin = is_of_host(plan) ? Chain::Hook::output_first : Chain::Hook::prerouting_first;
    return Table{.name = table_name(plan),
                 .owned = true,
                 .chains = {{begin, {std::move(first)}},
                            {Chain::Hook::postrouting_last, {std::move(last)}}}};
}

Fate fate_of(const std::vector<nft::TraceStep>& steps, const NetworkPlan& plan) {
    using Verdict = nft::TraceStep::Verdict;
    const auto own = table_name(plan);
    const auto is_own = [&](const auto& step) { return step.table == own; };
    // Others are traced, too, and such a packet passes our chains, but none of our rules.
    const auto first = std::find_if(steps.begin(), steps.end(), [&](const auto& step) {
        return is_own(step) && step.rule != 0;
    });
    if (first == steps.end()) return {};
    for (const auto& step : steps) {
        if (step.packet != first->packet || step.verdict != Verdict::dropped) continue;
        if (is_own(step)) return {.reached = true, .obstacle = {}};
        return {.reached = false,
                .obstacle = Obstacle{step.family, step.table, step.chain, step.rule}};
    }
    return {};
}

std::optional<Obstacle> probe(const Namespace& space, const NetworkPlan& plan,
                              const ip::address& outside, ProbeSockets& host,
                              std::chrono::milliseconds patience) {
    const auto source = source_of(plan, outside);
    std::pair<UniqueFd, std::uint16_t> socket;
    if (is_of_host(plan))
        socket = bind_socket(source);
    else
        space.run([&] { socket = bind_socket(source); });
    host.trace.start();
    host.rules.commit(probe_table(plan, outside, socket.second));
    send(socket.first, outside);
    std::vector<nft::TraceStep> steps;
    const auto deadline = Clock::now() + patience;
    Fate fate;
    while (!fate.reached && !fate.obstacle) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        const auto more = host.trace.read(static_cast<int>(std::max<long>(left.count(), 0)));
        if (more.empty()) break;
        steps.insert(steps.end(), more.begin(), more.end());
        fate = fate_of(steps, plan);
    }
    host.trace.stop();
    host.rules.remove(table_name(plan));
    // Of a probe that nobody has seen nothing is known.
    if (fate.reached || steps.empty()) return std::nullopt;
    return fate.obstacle.value_or(Obstacle{});
}

}  // namespace qvm::netns
