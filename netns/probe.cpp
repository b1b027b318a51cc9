#include "netns/probe.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/ip/udp.hpp>
#include <chrono>

#include "netns/error.h"
#include "netns/host_network.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint16_t probe_port = 1;  // tcpmux's (RFC 1078), which is TCP's only
// The kernel is through with it before sendto() returns, but for a host that is very busy, or where
// it has to ask for the host end's MAC address once more.
constexpr std::chrono::milliseconds patience{2000};

std::string table_name(const UplinkPlan& uplink) {
    return uplink.host_link + std::string{probe_suffix};
}

void send_probe(const ip::address& source, const ip::address& outside) {
    const char* step = "send a probe from the namespace";
    const int family = outside.is_v4() ? AF_INET : AF_INET6;
    const UniqueFd socket{check(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0), step)};
    const ip::udp::endpoint from{source, 0};
    const ip::udp::endpoint to{outside, probe_port};
    const auto length = [](const auto& endpoint) {
        return static_cast<socklen_t>(endpoint.size());
    };
    check(::bind(socket.get(), from.data(), length(from)), step);
    check(static_cast<int>(::sendto(socket.get(), "", 0, 0, to.data(), length(to))), step);
}

}  // namespace

nft::Table probe_table(const UplinkPlan& uplink, const ip::address& outside) {
    using namespace nft;
    const InputInterface from{uplink.host_link};
    const DestinationNetwork to{Network{outside}};
    const DestinationPort port{probe_port};
    return Table{.name = table_name(uplink),
                 .owned = true,
                 .chains = {{Chain::Hook::prerouting_first, {{from, to, port, Trace{}}}},
                            {Chain::Hook::postrouting_last, {{from, to, port, Drop{}}}}}};
}

Fate fate_of(const std::vector<nft::TraceStep>& steps, const UplinkPlan& uplink) {
    using Verdict = nft::TraceStep::Verdict;
    const auto own = table_name(uplink);
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

std::optional<Obstacle> probe_forwarding(const Namespace& space, const NetworkPlan& plan,
                                         const ip::address& outside, nft::Socket& rules,
                                         nft::TraceSocket& trace) {
    const auto& uplink = plan.uplink.value();
    trace.start();
    rules.commit(probe_table(uplink, outside));
    ip::address source = plan.mode == Mode::flat ? plan.own_address : uplink.inner_address;
    if (outside.is_v6()) source = inner_address6_of(uplink);
    space.run([&] { send_probe(source, outside); });
    std::vector<nft::TraceStep> steps;
    const auto deadline = Clock::now() + patience;
    Fate fate;
    while (!fate.reached && !fate.obstacle) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        const auto more = trace.read(static_cast<int>(std::max<long>(left.count(), 0)));
        if (more.empty()) break;
        steps.insert(steps.end(), more.begin(), more.end());
        fate = fate_of(steps, uplink);
    }
    trace.stop();
    rules.remove(table_name(uplink));
    // Of a probe that nobody has seen nothing is known.
    if (fate.reached || steps.empty()) return std::nullopt;
    return fate.obstacle.value_or(Obstacle{});
}

}  // namespace qvm::netns
