#include "netns/host_picture.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <optional>

#include "netns/forwarding.h"
#include "oracle.h"

using namespace qvm::netns;
namespace fs = std::filesystem;

namespace {

using Lines = std::vector<std::string>;

bool nobodys(std::string_view) {
    return false;
}

const fs::path no_leases = "/proc/none";

Lines lines(const fs::path& leases = no_leases, const IsOthers& is_others = nobodys) {
    Lines result;
    for (const auto& section : read_host_picture(leases, is_others))
        for (const auto& line : section.lines) result.push_back(section.name + ' ' + line);
    std::sort(result.begin(), result.end());
    return result;
}

Lines without(const Lines& from, const Lines& others) {
    Lines result;
    std::set_difference(from.begin(), from.end(), others.begin(), others.end(),
                        std::back_inserter(result));
    return result;
}

/// What came and what went with a command, "+ ..." and "- ...", sysctls of interfaces left out.
Lines changes(const std::string& command) {
    const auto before = lines();
    oracle::sh(command);
    const auto after = lines();
    Lines result;
    for (const auto& line : without(before, after)) result.push_back("- " + line);
    for (const auto& line : without(after, before))
        if (line.find("sysctl") == std::string::npos || line.find("ghost") == std::string::npos)
            result.push_back("+ " + line);
    return result;
}

std::size_t count(const std::string& section) {
    std::size_t number = 0;
    for (const auto& line : lines()) number += line.starts_with(section + ' ') ? 1 : 0;
    return number;
}

std::size_t size_of(const std::string& command) {
    const auto text = oracle::sh(command);
    return text.empty() ? 0 : boost::json::parse(text).as_array().size();
}

/// A link that goes with the test, and what the tests leave on it.
struct Ghost {
    Ghost() { oracle::sh("ip link add ghost0 mtu 1400 type bridge"); }
    Ghost(const Ghost&) = delete;
    Ghost& operator=(const Ghost&) = delete;
    ~Ghost() { std::system("ip link del ghost0"); }
};

std::int64_t index_of(const char* link) {
    return oracle::json(fmt::format("ip -j link show {}", link))
        .as_array()
        .at(0)
        .at("ifindex")
        .to_number<std::int64_t>();
}

}  // namespace

TEST_CASE("picture: a link, and what is changed of it") {
    const auto before = lines();
    {
        CHECK(changes("true").empty());
        const auto added = changes("ip link add ghost0 mtu 1400 type bridge");
        const auto line = fmt::format("link ghost0 index {} bridge mtu 1400", index_of("ghost0"));
        CHECK(added == Lines{"+ " + line});
        const auto raised = changes("ip link set ghost0 up");
        CHECK(std::count(raised.begin(), raised.end(), "- " + line) == 1);
        CHECK(std::count(raised.begin(), raised.end(), "+ " + line + " up") == 1);
        oracle::sh("ip link add ghost1 type veth peer name ghost2");
        const auto port = fmt::format("link ghost1 index {} veth mtu 1500", index_of("ghost1"));
        const auto enslaved = changes("ip link set ghost1 master ghost0");
        CHECK(std::count(enslaved.begin(), enslaved.end(), "+ " + port + " master ghost0") == 1);
        oracle::sh("ip link del ghost0 && ip link del ghost1");
    }
    CHECK(without(lines(), before).empty());
    CHECK(without(before, lines()).empty());
}

TEST_CASE("picture: addresses, routes and policy rules") {
    const Ghost ghost;
    CHECK(changes("ip addr add 192.0.2.1/24 dev ghost0") ==
          Lines{"+ address 192.0.2.1/24 dev ghost0",
                "+ route ip 192.0.2.1 local table local metric 0 src 192.0.2.1 dev ghost0"});
    CHECK(changes("ip addr add 198.51.100.1 peer 198.51.100.2/32 dev ghost0").front() ==
          "+ address 198.51.100.1 peer 198.51.100.2 dev ghost0");
    oracle::sh("ip link set ghost0 up");
    CHECK(changes("ip route add 203.0.113.0/24 via 192.0.2.9 table 77 metric 5") ==
          Lines{"+ route ip 203.0.113.0/24 unicast table 0x4d metric 5 via 192.0.2.9 dev ghost0"});
    CHECK(changes("ip route add default nexthop via 192.0.2.9 nexthop via 192.0.2.8") ==
          Lines{"+ route ip default unicast table main metric 0 via 192.0.2.9 dev ghost0 via "
                "192.0.2.8 dev ghost0"});
    CHECK(changes("ip route del default") ==
          Lines{"- route ip default unicast table main metric 0 via 192.0.2.9 dev ghost0 via "
                "192.0.2.8 dev ghost0"});
    CHECK(changes("ip route add blackhole 203.0.113.7 && ip route del blackhole 203.0.113.7")
              .empty());
    CHECK(changes("ip rule add fwmark 7 lookup 77").size() == 1);
    CHECK(changes("ip rule add from 192.0.2.0/24 lookup 78 priority 9").size() == 1);
    CHECK(changes("ip rule del priority 9").front().find("192.0.2.0/24") != std::string::npos);
    CHECK(changes("ip rule del fwmark 7").size() == 1);
}

TEST_CASE("picture: there is as much of everything as ip and nft see") {
    const Ghost ghost;
    oracle::sh("ip addr add 192.0.2.1/24 dev ghost0 && ip link set ghost0 up");
    oracle::sh("nft 'table inet t { chain c { accept; }; set s { type mark; }; }'");
    CHECK(count("link") == size_of("ip -j link show"));
    CHECK(count("address") == size_of("ip -j -4 addr show | grep -o '\"local\"' | sed "
                                      "'1s/^/[/;$!s/$/,/;$s/$/]/'") +
                                  size_of("ip -j -6 addr show | grep -o '\"local\"' | sed "
                                          "'1s/^/[/;$!s/$/,/;$s/$/]/'"));
    CHECK(count("route") ==
          size_of("ip -j -4 route show table all") + size_of("ip -j -6 route show table all"));
    CHECK(count("rule") == size_of("ip -j -4 rule") + size_of("ip -j -6 rule"));
    // Its first element is about nft itself.
    CHECK(count("nftables") ==
          oracle::json("nft -j list ruleset").at("nftables").as_array().size() - 1);
    oracle::sh("nft delete table inet t");
}

TEST_CASE("picture: nftables' objects of every kind and family") {
    const auto before = lines();
    auto added = changes("nft add table ip6 t");
    CHECK(added.size() == 1);
    CHECK(added.front().starts_with("+ nftables table ip6 t handle "));
    CHECK(changes("nft add chain ip6 t c '{ type filter hook input priority 0; }'").size() == 1);
    CHECK(changes("nft add rule ip6 t c accept").front().starts_with("+ nftables rule ip6 t c "));
    CHECK(changes("nft add set ip6 t s '{ type ipv6_addr; }'").size() == 1);
    CHECK(changes("nft add counter ip6 t n").front().starts_with("+ nftables object ip6 t n "));
    SECTION("another rule") {
        CHECK(changes("nft delete rule ip6 t c handle $(nft -a list chain ip6 t c | sed -n "
                      "'s/.*accept # handle //p') && nft add rule ip6 t c drop")
                  .size() == 2);
    }
    SECTION("a policy and a table that sleeps") {
        const auto dropped = changes("nft add chain ip6 t c '{ policy drop; }'");
        CHECK(dropped.size() == 2);
        CHECK(changes("nft add table ip6 t '{ flags dormant; }'").size() == 2);
    }
    oracle::sh("nft delete table ip6 t");
    CHECK(lines() == before);
}

TEST_CASE("picture: sysctls") {
    const Ghost ghost;
    CHECK(changes("echo 1 > /proc/sys/net/ipv4/conf/lo/accept_local") ==
          Lines{"- sysctl net/ipv4/conf/lo/accept_local = 0",
                "+ sysctl net/ipv4/conf/lo/accept_local = 1"});
    oracle::sh("echo 0 > /proc/sys/net/ipv4/conf/lo/accept_local");
    // Each but for secrets, what can only be written, and what differs from user to user.
    const auto readable = oracle::sh(
        "find /proc/sys/net/ipv4 /proc/sys/net/ipv6 -type f -perm /444 ! -name stable_secret ! "
        "-name ping_group_range ! "
        "-name 'tcp_fastopen_key*' -exec sh -c 'cat $0 >/dev/null 2>&1 && echo' {} \\; | wc -l");
    CHECK(std::to_string(count("sysctl")) + '\n' == readable);
    for (const auto& line : lines())
        CHECK((line.find("stable_secret") == std::string::npos &&
               line.find("fastopen_key") == std::string::npos));
}

TEST_CASE("picture: nothing of it changes by itself") {
    oracle::sh("ip link add ghost0 type veth peer name ghost9");
    oracle::sh("ip link set ghost0 addrgenmode none");
    oracle::sh("echo 0 > /proc/sys/net/ipv6/conf/ghost0/disable_ipv6");
    oracle::sh("ip link set lo up && ip link set ghost0 up && ip link set ghost9 up && sleep 1");
    oracle::sh("ip addr add 2001:db8::1/64 dev ghost0 valid_lft 900 preferred_lft 900");
    oracle::sh("ip addr add 192.0.2.1/24 dev ghost0 valid_lft 900 preferred_lft 900");
    oracle::sh("ip -6 route add 2001:db8:1::/64 via 2001:db8::2 dev ghost0 expires 900");
    oracle::sh("sleep 2");  // the address's own route comes when no other host has it
    oracle::sh(
        "nft 'table inet t { set s { type ipv4_addr; flags timeout; }; counter n { }; "
        "chain c { type filter hook input priority 0; counter; counter name n; }; }'");
    const auto before = lines();
    oracle::sh("nft add element inet t s '{ 192.0.2.7 timeout 900s }'");
    oracle::sh("ping -c 1 127.0.0.1 && sleep 1");  // lifetimes go down by a second
    CHECK(oracle::sh("nft list counters").find("packets 0") == std::string::npos);
    CHECK(without(before, lines()).empty());
    CHECK(without(lines(), before).empty());
    oracle::sh("nft delete table inet t && ip link set lo down && ip link del ghost0");
}

TEST_CASE("picture: what is another's is left out, with all that hangs on it") {
    const auto others = [](std::string_view name) { return name == "ghost0"; };
    const auto before = lines(no_leases, others);
    const Ghost ghost;
    oracle::sh("ip addr add 192.0.2.1/24 dev ghost0 && ip link set ghost0 up");
    oracle::sh("ip route add 203.0.113.0/24 via 192.0.2.9");
    oracle::sh("nft 'table inet ghost0 { chain c { accept; }; set s { type mark; }; }'");
    CHECK(lines().size() > before.size());
    CHECK(lines(no_leases, others) == before);
    oracle::sh("nft delete table inet ghost0");
}

TEST_CASE("picture: forwarding that a lease holds on is off") {
    const Ghost ghost;
    auto directory = fs::temp_directory_path() / "qvm-leases-XXXXXX";
    auto name = directory.string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    const fs::path leases = fs::path{name} / "leases";
    const std::string setting = "/proc/sys/net/ipv4/conf/ghost0/forwarding";
    const std::string on = "sysctl net/ipv4/conf/ghost0/forwarding = 1";
    oracle::sh("echo 0 > " + setting);
    const auto off = lines(leases);
    const auto is_on = [&] {
        const auto now = lines(leases);
        return std::find(now.begin(), now.end(), on) != now.end();
    };
    {
        const ForwardingLease first{leases, "ghost0"};
        CHECK(oracle::sh("cat " + setting) == "1\n");
        CHECK(lines(leases) == off);
        {
            const ForwardingLease second{leases, "ghost0"};
            CHECK(lines(leases) == off);
        }
        CHECK(lines(leases) == off);
        CHECK(oracle::sh("cat " + setting) == "1\n");  // to look takes nobody's lease
        CHECK(lines() != off);
    }
    CHECK(oracle::sh("cat " + setting) == "0\n");
    CHECK(!fs::exists(leases));
    SECTION("not that of a dead one") {
        fs::create_directory(leases);
        std::ofstream{leases / oracle::sh("ip -o link show ghost0 | cut -d: -f1 | tr -d '\\n'; "
                                          "stat -Lc @%i /proc/self/ns/net | tr -d '\\n'")};
        oracle::sh("echo 1 > " + setting);
        CHECK(is_on());
        CHECK(sweep_forwarding(leases) == Lines{"ghost0"});
        CHECK(!is_on());
    }
    SECTION("not what somebody else switched on") {
        oracle::sh("echo 1 > " + setting);
        CHECK(is_on());
        const ForwardingLease lease{leases, "ghost0"};
        CHECK(is_on());
    }
    fs::remove_all(name);
}
