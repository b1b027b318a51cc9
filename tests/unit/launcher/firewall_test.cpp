#include "launcher/firewall.h"

#include <catch2/catch.hpp>

using namespace qvm;
using netns::Obstacle;

namespace {

constexpr auto docker = R"(table ip filter {
	chain FORWARD { # handle 2
		type filter hook forward priority filter; policy drop;
		counter packets 0 bytes 0 jump DOCKER-USER # handle 5
	}
}
)";
constexpr auto firewalld = R"(table inet firewalld {
	chain filter_FORWARD { # handle 2
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept # handle 4
		reject with icmpx admin-prohibited # handle 5
	}
}
)";

}  // namespace

TEST_CASE("a rule is found by its handle") {
    CHECK(rule_in(firewalld, 5) == "reject with icmpx admin-prohibited");
    CHECK(rule_in(firewalld, 4) == "ct state { established, related } accept");
    CHECK(rule_in(firewalld, 55).empty());
    CHECK(rule_in("", 5).empty());
}

TEST_CASE("what drops is named as its owner knows it") {
    const std::string what = "the host's firewall drops what the guest sends: ";
    CHECK(describe(Obstacle{"ip", "filter", "FORWARD", 0}, docker) ==
          what + "ip filter FORWARD, policy drop (Docker's)");
    CHECK(describe(Obstacle{"inet", "firewalld", "filter_FORWARD", 5}, firewalld) ==
          what +
              "inet firewalld filter_FORWARD, rule 'reject with icmpx admin-prohibited' "
              "(firewalld's)");
    CHECK(describe(Obstacle{"ip", "filter", "ufw-reject-forward", 7}, "") ==
          what + "ip filter ufw-reject-forward, rule with handle 7 (ufw's)");
    CHECK(describe(Obstacle{"inet", "filter", "forward", 0}, "") ==
          what + "inet filter forward, policy drop");
    CHECK_THAT(describe(Obstacle{}, ""), Catch::Contains("iptables-legacy"));
}

TEST_CASE("the way through is its owner's") {
    CHECK(remedy(Obstacle{"ip", "filter", "FORWARD", 0}, docker) ==
          "iptables -I DOCKER-USER -i qvm-+ -j ACCEPT; iptables -I DOCKER-USER -o qvm-+ "
          "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
    CHECK_THAT(remedy(Obstacle{"ip6", "filter", "DOCKER-USER", 0}, ""),
               Catch::StartsWith("ip6tables -I DOCKER-USER "));
    CHECK(remedy(Obstacle{"inet", "firewalld", "filter_FORWARD", 5}, firewalld) ==
          "firewall-cmd --zone=trusted --add-interface=qvm-+");
    CHECK(remedy(Obstacle{"ip", "filter", "ufw-reject-forward", 7}, "") ==
          "ufw route allow in on qvm-+");
    CHECK_THAT(remedy(Obstacle{}, ""), Catch::StartsWith("iptables-legacy -I FORWARD "));
}
