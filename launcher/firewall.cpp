#include "launcher/firewall.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "launcher/failure.h"
#include "launcher/process.h"

namespace qvm {

std::string rule_in(std::string_view chain, std::uint64_t handle) {
    const auto mark = fmt::format(" # handle {}\n", handle);
    const auto end = chain.find(mark);
    if (end == std::string_view::npos) return {};
    const auto begin = chain.rfind('\n', end) + 1;  // 0 where there is no line before
    auto rule = chain.substr(begin, end - begin);
    rule.remove_prefix(std::min(rule.find_first_not_of(" \t"), rule.size()));
    return std::string{rule};
}

std::string owner_of(const netns::Obstacle& obstacle, std::string_view chain) {
    if (obstacle.table == "firewalld") return "firewalld";
    // The chains that they have themselves, or jump to from the ones that all share.
    constexpr std::array<std::pair<const char*, const char*>, 3> prefixes{
        {{"DOCKER", "Docker"}, {"ufw-", "ufw"}, {"LIBVIRT_", "libvirt"}}};
    for (const auto& [prefix, owner] : prefixes)
        if (obstacle.chain.starts_with(prefix)) return owner;
    for (const auto& [prefix, owner] : prefixes)
        if (chain.find(fmt::format("jump {}", prefix)) != std::string_view::npos) return owner;
    return {};
}

std::string describe(const netns::Obstacle& obstacle, std::string_view chain) {
    const std::string what = "the host's firewall drops what the guest sends: ";
    if (obstacle.table.empty())
        return what + "no rule of nftables does, but something behind them (iptables-legacy, say)";
    const auto rule = obstacle.rule == 0 ? std::string{} : rule_in(chain, obstacle.rule);
    auto which = obstacle.rule == 0 ? "policy drop"
                 : rule.empty()     ? fmt::format("rule with handle {}", obstacle.rule)
                                    : fmt::format("rule '{}'", rule);
    if (const auto owner = owner_of(obstacle, chain); !owner.empty())
        which += fmt::format(" ({}'s)", owner);
    return fmt::format("{}{} {} {}, {}", what, obstacle.family, obstacle.table, obstacle.chain,
                       which);
}

std::string remedy(const netns::Obstacle& obstacle, std::string_view chain) {
    constexpr auto by_iptables =
        "{0} -I {1} -i qvm-+ -j ACCEPT; "
        "{0} -I {1} -o qvm-+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
    if (obstacle.table.empty()) return fmt::format(by_iptables, "iptables-legacy", "FORWARD");
    const auto owner = owner_of(obstacle, chain);
    if (owner == "Docker")
        return fmt::format(by_iptables, obstacle.family == "ip6" ? "ip6tables" : "iptables",
                           "DOCKER-USER");
    if (owner == "ufw") return "ufw route allow in on qvm-+";
    if (owner == "firewalld") return "firewall-cmd --zone=trusted --add-interface=qvm-+";
    return fmt::format(
        "nft 'insert rule {0} {1} {2} iifname \"qvm-*\" accept; "
        "insert rule {0} {1} {2} oifname \"qvm-*\" ct state established,related accept'",
        obstacle.family, obstacle.table, obstacle.chain);
}

std::string read_chain(const netns::Obstacle& obstacle) {
    if (obstacle.table.empty() || !find_program("nft")) return {};
    return run_tool({"nft", "-a", "list", "chain", obstacle.family, obstacle.table, obstacle.chain})
        .out;
}

}  // namespace qvm
