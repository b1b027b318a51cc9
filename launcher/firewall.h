#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "netns/probe.h"

/// What in the host's firewall ends guests' packets, said so that its owner can be asked.
namespace qvm {

/// From what `nft -a list chain` prints: the rule with that handle; empty where there is none.
/// Pure.
std::string rule_in(std::string_view chain, std::uint64_t handle);

/// Who is known to have such tables and chains: "Docker", "ufw", "firewalld", "libvirt"; empty for
/// others. `chain` is the chain's text. Pure.
std::string owner_of(const netns::Obstacle& obstacle, std::string_view chain);

/// "the host's firewall drops what the guest sends: ip filter FORWARD, policy drop (Docker's)".
/// Pure.
std::string describe(const netns::Obstacle& obstacle, std::string_view chain);

/// The command that lets guests' packets, and the answers to them, pass there. Pure.
std::string remedy(const netns::Obstacle& obstacle, std::string_view chain);

/// The chain's text, as nft(8) has it on this host; empty where that is not installed, or where no
/// chain of nftables is the obstacle.
std::string read_chain(const netns::Obstacle& obstacle);

}  // namespace qvm
