#pragma once

#include <optional>
#include <string>
#include <vector>

#include "netns/namespace.h"
#include "netns/nft.h"
#include "netns/plan.h"

/// Whether the host forwards what the guests send: one packet of the namespace is followed through
/// the host's rules, and ends before it leaves the host.
namespace qvm::netns {

/// What ended a packet.
struct Obstacle {
    std::string family;  ///< of the table: "ip", "inet"; empty where nftables does not know
    std::string table;
    std::string chain;
    std::uint64_t rule = 0;  ///< its handle; 0: the chain's policy

    bool operator==(const Obstacle&) const = default;
};

/// The rules for a probe of that uplink to an address outside, while it lasts.
nft::Table probe_table(const UplinkPlan& uplink, const boost::asio::ip::address& outside);

/// What the steps of a probe say: `reached` once it has come to the end of probe_table(), or what
/// has ended it; neither while that is open. Pure.
struct Fate {
    bool reached = false;
    std::optional<Obstacle> obstacle;
};
Fate fate_of(const std::vector<nft::TraceStep>& steps, const UplinkPlan& uplink);

/// Sends one from `space`, whose uplink is a veth, to `outside` and follows it on the host, in
/// whose namespace the calling thread is. `rules` and `trace` (borrowed) are of the host. Returns
/// what ended it; nothing where it would have left the host, or where the host has no way to the
/// outside. Takes 1 ms; 2 s where it vanishes. Throws Error.
std::optional<Obstacle> probe_forwarding(const Namespace& space, const NetworkPlan& plan,
                                         const boost::asio::ip::address& outside,
                                         nft::Socket& rules, nft::TraceSocket& trace);

}  // namespace qvm::netns
