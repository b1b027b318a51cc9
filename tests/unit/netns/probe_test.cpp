#include "netns/probe.h"

#include <catch2/catch.hpp>

using namespace qvm::netns;
using nft::TraceStep;
using Verdict = TraceStep::Verdict;

namespace {

NetworkPlan plan_with(UplinkKind kind) {
    NetworkPlan plan;
    plan.id = "1a2b3c4d";
    plan.uplink.emplace().kind = kind;
    plan.uplink->host_link = "qvm-1a2b3c4d";
    return plan;
}

const NetworkPlan plan = plan_with(UplinkKind::veth);
const TraceStep begin{"ip", "qvm-1a2b3c4d-probe", "prerouting", 2, Verdict::goes_on, 7};
const TraceStep end{"ip", "qvm-1a2b3c4d-probe", "postrouting", 3, Verdict::dropped, 7};
const TraceStep ours{"ip", "qvm-1a2b3c4d", "forward", 5, Verdict::accepted, 7};
const TraceStep policy{"inet", "filter", "forward", 0, Verdict::dropped, 7};
const TraceStep rule{"inet", "firewalld", "filter_FORWARD", 9, Verdict::dropped, 7};

}  // namespace

TEST_CASE("a probe that comes to the end of its table would have left the host") {
    CHECK(fate_of({begin, ours, end}, plan).reached);
    CHECK(!fate_of({begin, ours, end}, plan).obstacle);
}

TEST_CASE("a policy or a rule that drops it is the obstacle, whatever accepted it before") {
    CHECK(fate_of({begin, ours, policy}, plan).obstacle ==
          Obstacle{"inet", "filter", "forward", 0});
    CHECK(fate_of({begin, rule}, plan).obstacle ==
          Obstacle{"inet", "firewalld", "filter_FORWARD", 9});
    CHECK(!fate_of({begin, ours, policy}, plan).reached);
}

TEST_CASE("other packets that are traced say nothing") {
    auto other = policy;
    other.packet = 8;
    CHECK(!fate_of({other}, plan).obstacle);
    CHECK(fate_of({other, begin, other, end}, plan).reached);
    CHECK(!fate_of({begin, other}, plan).obstacle);
    CHECK(!fate_of({begin, ours}, plan).reached);
}

TEST_CASE("a probe of another VM, which passes our chains and ends in its own, says nothing") {
    const TraceStep its_begin{"ip", "qvm-5e6f7a8b-probe", "prerouting", 2, Verdict::goes_on, 8};
    const TraceStep passes{"ip", "qvm-1a2b3c4d-probe", "prerouting", 0, Verdict::accepted, 8};
    const TraceStep its_end{"ip", "qvm-5e6f7a8b-probe", "postrouting", 4, Verdict::dropped, 8};
    CHECK(!fate_of({its_begin, passes, its_end}, plan).obstacle);
    CHECK(!fate_of({its_begin, passes, its_end}, plan).reached);
    CHECK(fate_of({its_begin, passes, its_end, begin, end}, plan).reached);
}

TEST_CASE("the probe's table begins before all others and ends it after them") {
    CHECK(nft::to_text(probe_table(plan, outside_address(), 40000)) ==
          R"(table inet qvm-1a2b3c4d-probe {
    flags owner
    chain prerouting {
        type filter hook prerouting priority -350; policy accept;
        iifname "qvm-1a2b3c4d" ip daddr 198.41.0.4 meta nftrace set 1
    }
    chain postrouting {
        type filter hook postrouting priority 2147483647; policy accept;
        iifname "qvm-1a2b3c4d" ip daddr 198.41.0.4 drop
    }
})");
    CHECK(nft::to_text(probe_table(plan_with(UplinkKind::pasta), outside_address(), 40000)) ==
          R"(table inet qvm-1a2b3c4d-probe {
    flags owner
    chain output {
        type filter hook output priority -350; policy accept;
        th sport 40000 ip daddr 198.41.0.4 meta nftrace set 1
    }
    chain postrouting {
        type filter hook postrouting priority 2147483647; policy accept;
        th sport 40000 ip daddr 198.41.0.4 drop
    }
})");
    CHECK(is_of_another_network("qvm-1a2b3c4d-probe", "00000000"));
    CHECK(!is_of_another_network("qvm-1a2b3c4d-probe", "1a2b3c4d"));
}
