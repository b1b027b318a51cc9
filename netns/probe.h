#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "netns/namespace.h"
#include "netns/nft.h"
#include "netns/plan.h"

/// Whether what the guests send gets out of the host: one packet on the same way, of the namespace
/// (veth) or of the host itself (pasta), is followed through the host's rules, and ends before it
/// leaves the host.
namespace qvm::netns {

/// What ended a packet.
struct Obstacle {
    std::string family;  ///< of the table: "ip", "inet"; empty where nftables does not know
    std::string table;
    std::string chain;
    std::uint64_t rule = 0;  ///< its handle; 0: the chain's policy

    bool operator==(const Obstacle&) const = default;
};

/// The rules for a probe from that port to an address outside, while it lasts.
nft::Table probe_table(const NetworkPlan& plan, const boost::asio::ip::address& outside,
                       std::uint16_t source_port);

/// What the steps of a probe say: `reached` once it has come to the end of probe_table(), or what
/// has ended it; neither while that is open. Pure.
struct Fate {
    bool reached = false;
    std::optional<Obstacle> obstacle;
};
Fate fate_of(const std::vector<nft::TraceStep>& steps, const NetworkPlan& plan);

/// The host's side of probes.
struct ProbeSockets {
    nft::Socket rules;
    nft::TraceSocket trace;
};

/// Sends a SYN to `outside`, and if that ends on the way also a datagram, from `space` or, where
/// the uplink is pasta, as pasta does, and follows it on the host, in whose namespace the calling
/// thread is and `host` (borrowed) was opened. Returns what ended the first; nothing where one
/// would have left the host. Takes 1 ms; `patience` where it vanishes. Throws Error, also where
/// nobody saw it: then nothing is known.
std::optional<Obstacle> probe(const Namespace& space, const NetworkPlan& plan,
                              const boost::asio::ip::address& outside, ProbeSockets& host,
                              std::chrono::milliseconds patience);

}  // namespace qvm::netns
