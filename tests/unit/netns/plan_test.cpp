#include "netns/plan.h"

#include <catch2/catch.hpp>

#include "netns/error.h"

using namespace qvm::netns;
namespace ip = boost::asio::ip;

namespace {

NetworkSpec spec_of(Mode mode) {
    NetworkSpec spec;
    spec.mode = mode;
    spec.id = "1a2b3c4d";
    spec.guest_name = "web";
    return spec;
}

HostNetwork host_with(std::vector<const char*> used) {
    HostNetwork host;
    for (const char* network : used) host.used.push_back(ip::make_network_v4(network));
    host.uplink = Uplink{.interface = "eth0", .mtu = 1400};
    return host;
}

/// The plan on a host with these networks. Claims are real, but they touch nothing.
NetworkPlan plan_of(const NetworkSpec& spec, const HostNetwork& host = host_with({})) {
    const auto claims = claim_networks(spec, host);
    return make_plan(spec, host, claims);
}

std::string failure_of(const NetworkSpec& spec, const HostNetwork& host = host_with({})) {
    try {
        plan_of(spec, host);
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

bool has(const std::vector<std::string>& words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

TEST_CASE("isolated: no uplink, and its own MTU") {
    const auto plan = plan_of(spec_of(Mode::isolated));
    CHECK(plan.subnet.to_string() == "192.168.26.0/24");
    CHECK(plan.gateway.to_string() == "192.168.26.1");
    CHECK(plan.bridge == plan.gateway);
    CHECK(plan.guest_address.to_string() == "192.168.26.10");
    CHECK(plan.mtu == 1500);
    CHECK(!plan.uplink);
    CHECK(!inner_table(plan));
    CHECK(!host_table(plan));
}

TEST_CASE("nat: a /31 of the pool, the uplink's MTU, rules on both sides") {
    const auto plan =
        plan_of(spec_of(Mode::nat), host_with({"10.213.0.0/24", "192.168.26.128/25"}));
    CHECK(plan.mtu == 1400);
    CHECK(plan.subnet.to_string() == "192.168.27.0/24");
    CHECK(plan.uplink->host_link == "qvm-1a2b3c4d");
    CHECK(plan.uplink->host_address.to_string() == "10.213.1.0");
    CHECK(plan.uplink->inner_address.to_string() == "10.213.1.1");
    CHECK(plan.uplink->prefix_length == 31);
    CHECK(nft::to_text(*inner_table(plan)) == R"(table ip qvm {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "up0" ip daddr 10.213.1.1 dnat to 192.168.27.10
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "up0" ip saddr 192.168.27.0/24 masquerade
    }
})");
    CHECK(nft::to_text(*host_table(plan)) == R"(table ip qvm-1a2b3c4d {
    flags owner
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "qvm-1a2b3c4d" ip saddr 10.213.1.1 accept
        iifname "qvm-1a2b3c4d" drop
        oifname "qvm-1a2b3c4d" ct state established,related accept
        oifname "qvm-1a2b3c4d" drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.213.1.1 oifname != "qvm-1a2b3c4d" masquerade
    }
})");
}

TEST_CASE("flat: the host end is the gateway, and the masquerade is the uplink's") {
    const auto plan = plan_of(spec_of(Mode::flat), host_with({"192.168.26.0/24"}));
    CHECK(plan.subnet.to_string() == "192.168.27.0/24");
    CHECK(plan.gateway.to_string() == "192.168.27.1");
    CHECK(plan.bridge.to_string() == "192.168.27.2");
    CHECK(plan.uplink->host_address == plan.gateway);
    CHECK(nft::to_text(*host_table(plan))
              .find("ip saddr 192.168.27.0/24 oifname \"eth0\" masquerade") != std::string::npos);
    CHECK(!inner_table(plan));
    auto alone = host_with({});
    alone.uplink.reset();
    CHECK(failure_of(spec_of(Mode::flat), alone) ==
          "find the uplink: the host has no route to the outside for 'flat'");
}

TEST_CASE("nat starts on a host that is offline") {
    auto alone = host_with({});
    alone.uplink.reset();
    const auto plan = plan_of(spec_of(Mode::nat), alone);
    CHECK(plan.uplink->interface.empty());
    CHECK(plan.mtu == 1500);
}

TEST_CASE("pools: the second where the first is routed, and the user's own") {
    const auto vpn = host_with({"10.0.0.0/8"});
    CHECK(plan_of(spec_of(Mode::nat), vpn).uplink->host_address.to_string() == "172.29.0.0");
    auto spec = spec_of(Mode::nat);
    spec.pool = ip::make_network_v4("10.9.9.0/30");
    CHECK(plan_of(spec, host_with({"10.9.9.0/31"})).uplink->host_address.to_string() == "10.9.9.2");
    CHECK(failure_of(spec, vpn) == "pool 10.9.9.0/30: no /31 in it is free of the host's routes");
    CHECK(failure_of(spec_of(Mode::nat), host_with({"10.0.0.0/8", "172.16.0.0/12"})) ==
          "choose a /31: the host has routes to all of 10.213.0.0/16 and 172.29.0.0/16");
    CHECK(failure_of(spec_of(Mode::nat), host_with({"192.168.0.0/16"})) ==
          "choose a subnet: the host has routes to all of 192.168.0.0/16");
}

TEST_CASE("what was asked for is taken") {
    auto spec = spec_of(Mode::isolated);
    spec.subnet = ip::make_network_v4("10.1.0.0/16");
    spec.address = ip::make_address_v4("10.1.2.3");
    spec.mac = "52:54:00:aa:bb:cc";
    spec.mtu = 9000;
    spec.queues = 4;
    const auto plan = plan_of(spec);
    CHECK(plan.gateway.to_string() == "10.1.0.1");
    CHECK(plan.guest_address.to_string() == "10.1.2.3");
    CHECK(plan.guest_mac == "52:54:00:aa:bb:cc");
    CHECK(plan.mtu == 9000);
    CHECK(plan.queues == 4);
    spec = spec_of(Mode::isolated);
    spec.subnet = ip::make_network_v4("10.1.0.0/29");
    CHECK(plan_of(spec).guest_address.to_string() == "10.1.0.3");
}

TEST_CASE("what does not fit together is refused with the reason") {
    const auto failure = [](auto change) {
        auto spec = spec_of(Mode::isolated);
        change(spec);
        return failure_of(spec);
    };
    const auto net = [](const char* text) { return ip::make_network_v4(text); };
    CHECK(failure([&](auto& s) { s.subnet = net("10.1.2.3/24"); }) ==
          "subnet 10.1.2.3/24: has host bits set (the network is 10.1.2.0/24)");
    CHECK(failure([&](auto& s) { s.subnet = net("10.1.2.0/30"); }) ==
          "subnet 10.1.2.0/30: a prefix of 8 to 29 bits is needed");
    CHECK(failure([&](auto& s) { s.subnet = net("0.0.0.0/0"); }) ==
          "subnet 0.0.0.0/0: a prefix of 8 to 29 bits is needed");
    CHECK(failure([&](auto& s) { s.subnet = net("127.0.0.0/24"); }) ==
          "subnet 127.0.0.0/24: is not for hosts (RFC 6890)");
    CHECK(failure([&](auto& s) { s.subnet = net("224.0.0.0/24"); }) ==
          "subnet 224.0.0.0/24: is not for hosts (RFC 6890)");
    auto nat = spec_of(Mode::nat);
    nat.pool = net("10.9.0.0/32");
    CHECK(failure_of(nat) == "pool 10.9.0.0/32: a prefix of 8 to 31 bits is needed");
    nat.pool = net("10.9.0.5/24");
    CHECK(failure_of(nat) == "pool 10.9.0.5/24: has host bits set (the network is 10.9.0.0/24)");
    nat = spec_of(Mode::nat);
    nat.subnet = net("10.213.0.0/16");
    CHECK(failure_of(nat) == "subnet 10.213.0.0/16: overlaps the link to the host, 10.213.0.0/31");
    const auto address = [](const char* text) { return ip::make_address_v4(text); };
    CHECK(failure([&](auto& s) { s.address = address("10.0.0.1"); }) ==
          "address 10.0.0.1: is not in the subnet 192.168.26.0/24");
    CHECK(failure([&](auto& s) { s.address = address("192.168.26.1"); }) ==
          "address 192.168.26.1: is the gateway's");
    CHECK(failure([&](auto& s) { s.address = address("192.168.26.255"); }) ==
          "address 192.168.26.255: is the subnet's network or broadcast address");
    CHECK(failure([](auto& s) { s.mac = "52:54:00"; }) ==
          "mac '52:54:00': must look like 52:54:00:12:34:56");
    CHECK(failure([](auto& s) { s.mac = "01:00:5e:00:00:01"; }) ==
          "mac '01:00:5e:00:00:01': is a multicast address");
    for (const char* mac :
         {"52:54:00:aa:bb:cc,x", "52:54:00:aa:bb: c", "52-54-00-aa-bb-cc", "", "52:54:00:aa:bb:cg"})
        CHECK(failure([&](auto& s) { s.mac = mac; }).starts_with("mac '"));
    CHECK(failure([](auto& s) { s.mtu = 100; }) == "mtu 100: must be 576 to 65520");
    CHECK(failure([](auto& s) { s.queues = 0; }) == "queues 0: must be 1 to 256");
    auto flat = spec_of(Mode::flat);
    flat.subnet = net("10.1.2.0/24");
    CHECK(failure_of(flat, host_with({"10.0.0.0/8"})) ==
          "subnet 10.1.2.0/24: the host has an address or a route in it already");
}

TEST_CASE("dnsmasq: the guest's lease, its MTU, and the relay where there is an outside") {
    const auto isolated = dnsmasq_command(plan_of(spec_of(Mode::isolated)));
    CHECK(has(isolated, "--dhcp-host=52:54:00:a8:1a:0a,192.168.26.10,web.qvm"));
    CHECK(has(isolated, "--dhcp-option=option:mtu,1500"));
    CHECK(has(isolated, "--host-record=web,web.qvm,192.168.26.10"));
    CHECK(has(isolated, "--host-record=gateway,gateway.qvm,192.168.26.1"));
    CHECK(!has(isolated, "--server=127.0.0.1#5300"));
    const auto flat = dnsmasq_command(plan_of(spec_of(Mode::flat)));
    CHECK(has(flat, "--server=127.0.0.1#5300"));
    CHECK(has(flat, "--dhcp-option=option:dns-server,192.168.26.2"));
    CHECK(has(flat, "--dhcp-option=option:router,192.168.26.1"));
}
