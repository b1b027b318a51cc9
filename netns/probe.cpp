#include "netns/probe.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/ip/udp.hpp>
#include <utility>

#include "netns/error.h"
#include "netns/host_network.h"

namespace qvm::netns {

namespace ip = boost::asio::ip;

namespace {

using Clock = std::chrono::steady_clock;

/// What is tried, until one gets through: a firewall may let guests do some things only.
struct Kind {
    int socket_type;
    std::uint16_t port;
};
constexpr std::array kinds{Kind{SOCK_STREAM, 443}, Kind{SOCK_DGRAM, 53}};

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

/// A socket of the calling thread's namespace, and its port.
std::pair<UniqueFd, std::uint16_t> bind_socket(int type, const ip::address& source) {
    const int family = source.is_v4() ? AF_INET : AF_INET6;
    UniqueFd socket{check(::socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), send_step)};
    ip::udp::endpoint own{source, 0};
    check(::bind(socket.get(), own.data(), static_cast<socklen_t>(own.size())), send_step);
    auto length = static_cast<socklen_t>(own.capacity());
    check(::getsockname(socket.get(), own.data(), &length), send_step);
    return {std::move(socket), own.port()};
}

/// A SYN, or an empty datagram.
void send(const UniqueFd& socket, const Kind& kind, const ip::address& outside) {
    const ip::udp::endpoint to{outside, kind.port};
    const auto length = static_cast<socklen_t>(to.size());
    const auto sent = kind.socket_type == SOCK_STREAM
                          ? ::connect(socket.get(), to.data(), length)
                          : ::sendto(socket.get(), "", 0, 0, to.data(), length);
    // Of what an output chain drops the sender is told: EPERM, or as its reject has it.
    constexpr std::array expected{EINPROGRESS, EPERM, ECONNREFUSED, EHOSTUNREACH, EACCES};
    if (sent < 0 && std::ranges::find(expected, errno) == expected.end())
        throw Error(send_step, errno);
}

/// The host's side of one probe, which ends with it.
class Pursuit {
  public:
    // Delegating: what fails from here on is undone, too.
    Pursuit(ProbeSockets& host, const nft::Table& table) : Pursuit(host, table.name) {
        host_.trace.start();
        host_.rules.replace(table);
    }
    Pursuit(const Pursuit&) = delete;
    Pursuit& operator=(const Pursuit&) = delete;
    ~Pursuit() {
        // The table goes with its socket; where there cannot be another one, with the next probe.
        try {
            host_.rules.remove(name_);
        } catch (const std::exception&) {
            renew();
        }
        try {
            host_.trace.stop();
        } catch (const std::exception&) {
        }
    }

  private:
    Pursuit(ProbeSockets& host, std::string name) : host_(host), name_(std::move(name)) {}

    void renew() noexcept {
        try {
            host_.rules = nft::Socket{};
        } catch (const std::exception&) {
        }
    }

    ProbeSockets& host_;
    std::string name_;
};

/// Those of the packet that was sent, which has met our first rule before all others.
std::vector<nft::TraceStep> of_probe(std::vector<nft::TraceStep> steps, const NetworkPlan& plan) {
    const auto first = std::ranges::find_if(steps, [&](const nft::TraceStep& step) {
        return step.table == table_name(plan) && step.rule != 0;
    });
    if (first == steps.end()) return {};
    const auto packet = first->packet;
    std::erase_if(steps, [&](const nft::TraceStep& step) { return step.packet != packet; });
    return steps;
}

}  // namespace

nft::Table probe_table(const NetworkPlan& plan, const ip::address& outside,
                       std::uint16_t source_port) {
    using namespace nft;
    const DestinationNetwork to{Network{outside}};
    Rule first{TransportSource{source_port}, to, Trace{}};
    Rule last{TransportSource{source_port}, to, Drop{}};
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

namespace {

std::optional<Obstacle> probe_with(const Kind& kind, const Namespace& space,
                                   const NetworkPlan& plan, const ip::address& outside,
                                   ProbeSockets& host, std::chrono::milliseconds patience) {
    const auto source = source_of(plan, outside);
    std::pair<UniqueFd, std::uint16_t> socket;
    if (is_of_host(plan))
        socket = bind_socket(kind.socket_type, source);
    else
        space.run([&] { socket = bind_socket(kind.socket_type, source); });
    const Pursuit pursuit{host, probe_table(plan, outside, socket.second)};
    send(socket.first, kind, outside);
    const auto deadline = Clock::now() + patience;
    std::vector<nft::TraceStep> steps;
    for (auto now = Clock::now(); now < deadline; now = Clock::now()) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - now);
        const auto more = host.trace.read(static_cast<int>(left.count()));
        steps.insert(steps.end(), more.begin(), more.end());
        steps = of_probe(std::move(steps), plan);
        const auto fate = fate_of(steps, plan);
        if (fate.reached) return std::nullopt;
        if (fate.obstacle) return fate.obstacle;
    }
    if (steps.empty()) throw Error("follow a probe through the host's rules", ETIMEDOUT);
    return Obstacle{};
}

}  // namespace

std::optional<Obstacle> probe(const Namespace& space, const NetworkPlan& plan,
                              const ip::address& outside, ProbeSockets& host,
                              std::chrono::milliseconds patience) {
    std::optional<Obstacle> first;
    for (const auto& kind : kinds) {
        const auto obstacle = probe_with(kind, space, plan, outside, host, patience);
        if (!obstacle) return std::nullopt;
        if (!first) first = obstacle;
    }
    return first;
}

}  // namespace qvm::netns
