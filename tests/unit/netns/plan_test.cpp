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

GuestPlan guest_of(const NetworkSpec& spec) {
    return make_guest(spec, plan_of(spec));
}

std::string failure_of(const NetworkSpec& spec, const HostNetwork& host = host_with({})) {
    try {
        make_guest(spec, plan_of(spec, host));
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
    CHECK(plan.own_address == plan.gateway);
    CHECK(!plan.bridged);
    const auto guest = guest_of(spec_of(Mode::isolated));
    CHECK(guest.address.to_string() == "192.168.26.10");
    CHECK(!guest.host_address);
    CHECK(plan.mtu == 1500);
    CHECK(!plan.uplink);
    CHECK(!inner_table(plan, guest));
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
    const auto guest = make_guest(spec_of(Mode::nat), plan);
    CHECK(guest.host_address == plan.uplink->inner_address);
    CHECK(nft::to_text(*inner_table(plan, guest)) == R"(table inet qvm {
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "up0" ip daddr 10.213.1.1 dnat ip to 192.168.27.10
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "up0" ip saddr 192.168.27.0/24 masquerade
    }
})");
    CHECK(nft::to_text(*host_table(plan)) == R"(table inet qvm-1a2b3c4d {
    flags owner
    chain mangle {
        type filter hook prerouting priority mangle; policy accept;
        iifname "qvm-1a2b3c4d" ct state established,related accept
        iifname "qvm-1a2b3c4d" icmpv6 type nd-neighbor-solicit accept
        iifname "qvm-1a2b3c4d" icmpv6 type nd-neighbor-advert accept
        iifname "qvm-1a2b3c4d" fib daddr type local reject
    }
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "qvm-1a2b3c4d" tcp flags syn tcp option maxseg size set rt mtu
        oifname "qvm-1a2b3c4d" tcp flags syn tcp option maxseg size set rt mtu
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

TEST_CASE("interfaces that forward because of guests forward for nobody else") {
    const auto host = host_with({});
    const auto spec = spec_of(Mode::nat);
    const auto claims = claim_networks(spec, host);
    const auto table = host_table(make_plan(spec, host, claims), {{"eth0", "tun0"}, {"eth0"}});
    CHECK_THAT(nft::to_text(*table), Catch::Contains(R"(
        type filter hook forward priority filter; policy accept;
        meta nfproto ipv4 iifname "eth0" oifname != "eth0" oifname != "qvm-*" drop
        meta nfproto ipv4 iifname "tun0" oifname != "tun0" oifname != "qvm-*" drop
        meta nfproto ipv6 iifname "eth0" oifname != "eth0" oifname != "qvm-*" drop
)"));
}

TEST_CASE("nat by pasta: nothing of the host's, and the same network for the guest") {
    auto spec = spec_of(Mode::nat);
    spec.uplink = UplinkKind::pasta;
    const auto host = host_with({"10.213.0.0/16"});
    const auto claims = claim_networks(spec, host);
    CHECK(!claims.link);
    const auto plan = make_plan(spec, host, claims);
    CHECK(plan.subnet.to_string() == "192.168.26.0/24");
    CHECK(plan.mtu == 1400);
    REQUIRE(plan.uplink);
    CHECK(plan.uplink->interface == "eth0");
    CHECK(!host_table(plan));
    const auto guest = make_guest(spec, plan);
    CHECK(guest.address.to_string() == "192.168.26.10");
    CHECK(!guest.host_address);
    CHECK(nft::to_text(inner_table(plan, guest).value()).find("dnat") == std::string::npos);
    CHECK(nft::to_text(inner_table(plan, guest).value()).find("masquerade") != std::string::npos);

    const auto command = pasta_command(plan, 7);
    CHECK(has(command, "--netns=/proc/self/fd/7"));
    CHECK(has(command, "--address=10.213.0.1"));
    CHECK(has(command, "--gateway=10.213.0.0"));
    CHECK(has(command, "--mtu=1400"));
    CHECK(has(command, "--no-map-gw"));

    UplinkState state;
    CHECK(trouble_of(*plan.uplink, state) ==
          "the host has no route to the outside: neither has the guest");
    state.outwards = "eth0";
    CHECK(trouble_of(*plan.uplink, state).empty());

    spec.subnet = ip::make_network_v4("10.213.0.0/24");
    CHECK(plan_of(spec).uplink->inner_address.to_string() == "172.29.0.1");
}

TEST_CASE("other networks are known by their names") {
    CHECK(is_of_another_network("qvm-0123abcd", ""));
    CHECK(is_of_another_network("qvm-0123abcd", "0123abce"));
    CHECK(!is_of_another_network("qvm-0123abcd", "0123abcd"));
    for (const char* name : {"", "eth0", "qvm-", "qvm-0123abc", "qvm-0123abcde", "qvm-0123ABCD",
                             "qvm-0123abcg", "my-0123abcd", "xqvm-0123abcd"})
        CHECK(!is_of_another_network(name, ""));
}

TEST_CASE("what cuts a guest off is said with its interface, and nothing where all is well") {
    const auto uplink = plan_of(spec_of(Mode::nat), host_with({})).uplink.value();
    const auto inner = uplink.inner_address;
    CHECK(trouble_of(uplink, {true, inner, "qvm-1a2b3c4d", "eth1"}).empty());
    CHECK(trouble_of(uplink, {false, inner, "qvm-1a2b3c4d", "eth0"}) ==
          "the VM's link 'qvm-1a2b3c4d' is not there any more: the guest is cut off");
    CHECK(trouble_of(uplink, {true, inner, "vpn0", "vpn0"}) ==
          "the host's routes lead what is for 10.213.0.1 to 'vpn0' and not to 'qvm-1a2b3c4d': the "
          "guest is cut off");
    CHECK(trouble_of(uplink, {true, inner, std::nullopt, "eth0"}) ==
          "the host has no route to 10.213.0.1 on 'qvm-1a2b3c4d' any more: the guest is cut off");
    CHECK(trouble_of(uplink, {true, inner, "qvm-1a2b3c4d", std::nullopt}) ==
          "the host has no route to the outside: neither has the guest");
}

TEST_CASE("flat: the host end is the gateway, and the masquerade follows the host's routes") {
    const auto plan = plan_of(spec_of(Mode::flat), host_with({"192.168.26.0/24"}));
    CHECK(plan.subnet.to_string() == "192.168.27.0/24");
    CHECK(plan.gateway.to_string() == "192.168.27.1");
    CHECK(plan.own_address.to_string() == "192.168.27.2");
    CHECK(plan.uplink->host_address == plan.gateway);
    CHECK(nft::to_text(*host_table(plan))
              .find("ip saddr 192.168.27.0/24 oifname != \"qvm-1a2b3c4d\" masquerade") !=
          std::string::npos);
    CHECK(plan.bridged);
    const auto guest = make_guest(spec_of(Mode::flat), plan);
    CHECK(guest.host_address == guest.address);
    CHECK(!inner_table(plan, guest));
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
    const auto guest = make_guest(spec, plan);
    CHECK(plan.gateway.to_string() == "10.1.0.1");
    CHECK(guest.address.to_string() == "10.1.2.3");
    CHECK(guest.mac == "52:54:00:aa:bb:cc");
    CHECK(plan.mtu == 9000);
    CHECK(guest.queues == 4);
    spec = spec_of(Mode::isolated);
    spec.subnet = ip::make_network_v4("10.1.0.0/29");
    CHECK(guest_of(spec).address.to_string() == "10.1.0.3");
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

TEST_CASE("shared: a bridge, and a host address for every guest") {
    auto spec = spec_of(Mode::nat);
    spec.shared = true;
    const auto plan = plan_of(spec, host_with({"10.213.255.0/25"}));
    CHECK(plan.bridged);
    CHECK(plan.uplink->host_address.to_string() == "10.213.254.0");
    CHECK(plan.uplink->inner_address.to_string() == "10.213.254.1");
    CHECK(plan.uplink->prefix_length == 31);
    CHECK(plan.uplink->guests->to_string() == "10.213.254.0/24");
    const auto first = make_guest(spec, plan);
    CHECK(first.address.to_string() == "192.168.26.10");
    CHECK(first.host_address->to_string() == "10.213.254.10");
    const auto second = make_guest(spec, plan, {first});
    CHECK(second.address.to_string() == "192.168.26.11");
    CHECK(second.mac != first.mac);
    CHECK(nft::to_text(*inner_table(plan, first))
              .find("iifname \"up0\" ip daddr 10.213.254.0/24 dnat ip prefix to 192.168.26.0/24") !=
          std::string::npos);
    spec.address = first.address;
    CHECK_THROWS_WITH(make_guest(spec, plan, {first}),
                      "address 192.168.26.10: is another guest's in this group");
    spec.address.reset();
    spec.mac = "52:54:00:A8:1A:0A";
    CHECK_THROWS_WITH(make_guest(spec, plan, {first}),
                      "mac '52:54:00:A8:1A:0A': is another guest's in this group");
}

TEST_CASE("shared: as many guests as the subnet has addresses, the low ones last") {
    auto spec = spec_of(Mode::isolated);
    spec.shared = true;
    spec.subnet = ip::make_network_v4("10.1.0.0/28");
    const auto plan = plan_of(spec);
    std::vector<GuestPlan> others;
    for (int i = 0; i < 13; ++i) others.push_back(make_guest(spec, plan, others));
    CHECK(others.at(0).address.to_string() == "10.1.0.10");
    CHECK(others.at(4).address.to_string() == "10.1.0.14");
    CHECK(others.at(5).address.to_string() == "10.1.0.2");
    CHECK(others.at(12).address.to_string() == "10.1.0.9");
    CHECK_THROWS_WITH(make_guest(spec, plan, others), "subnet 10.1.0.0/28: has no address left");
}

TEST_CASE("shared: beyond the link's addresses a guest has none on the host") {
    auto spec = spec_of(Mode::nat);
    spec.shared = true;
    spec.subnet = ip::make_network_v4("172.20.0.0/16");
    const auto plan = plan_of(spec);
    CHECK(plan.uplink->guests->prefix_length() == 24);
    spec.address = ip::make_address_v4("172.20.0.200");
    CHECK(make_guest(spec, plan).host_address->to_string() == "10.213.255.200");
    spec.address = ip::make_address_v4("172.20.1.0");
    CHECK(!make_guest(spec, plan).host_address);
}

TEST_CASE("who joins must not ask for another network") {
    auto spec = spec_of(Mode::nat);
    spec.shared = true;
    const auto plan = plan_of(spec);
    CHECK_NOTHROW(check_same(spec, plan));
    const auto with = [&](auto change) {
        auto other = spec;
        change(other);
        try {
            check_same(other, plan);
        } catch (const Error& error) {
            return std::string{error.what()};
        }
        return std::string{};
    };
    CHECK(with([](auto& s) { s.mode = Mode::isolated; }) ==
          "mode isolated: the group's network is nat");
    CHECK(with([](auto& s) { s.subnet = ip::make_network_v4("10.1.0.0/24"); }) ==
          "subnet 10.1.0.0/24: the group's network is 192.168.26.0/24");
    CHECK(with([](auto& s) { s.mtu = 9000; }) == "mtu 9000: the group's network has 1400");
    CHECK(with([](auto& s) { s.pool = ip::make_network_v4("10.9.0.0/16"); }) ==
          "pool 10.9.0.0/16: the group's host addresses are 10.213.255.0/24");
}

TEST_CASE(
    "dnsmasq: the guests' leases and names, the MTU, and the relay where there is an outside") {
    const auto isolated = dnsmasq_command(plan_of(spec_of(Mode::isolated)), "/dir");
    CHECK(has(isolated, "--interface=tap0"));
    CHECK(has(isolated, "--dhcp-hostsfile=/dir/dhcp-hosts"));
    CHECK(has(isolated, "--addn-hosts=/dir/hosts"));
    CHECK(has(isolated, "--dhcp-option=option:mtu,1500"));
    CHECK(!has(isolated, "--server=127.0.0.1#5300"));
    const auto flat = dnsmasq_command(plan_of(spec_of(Mode::flat)), "/dir");
    CHECK(has(flat, "--interface=br0"));
    CHECK(has(flat, "--server=127.0.0.1#5300"));
    CHECK(has(flat, "--dhcp-option=option:dns-server,192.168.26.2"));
    CHECK(has(flat, "--dhcp-option=option:router,192.168.26.1"));

    const auto plan = plan_of(spec_of(Mode::isolated));
    auto guest = make_guest(spec_of(Mode::isolated), plan);
    CHECK(dhcp_hosts(plan, {guest}) == "52:54:00:a8:1a:0a,192.168.26.10,web.qvm\n");
    CHECK(dns_hosts(plan, {guest}) ==
          "192.168.26.10 web web.qvm\n192.168.26.1 gateway gateway.qvm\n");
    guest.name = "gateway";
    CHECK(dns_hosts(plan, {guest}) == "192.168.26.10 gateway gateway.qvm\n");
}

TEST_CASE("IPv6: the guests' own network, one to one with IPv4's, and NAT on both sides") {
    auto host = host_with({});
    host.has_ipv6 = true;
    CHECK(plan_of(spec_of(Mode::isolated), host).subnet6);
    CHECK(!plan_of(spec_of(Mode::flat), host).subnet6);
    CHECK(!plan_of(spec_of(Mode::nat), host).uplink->ipv6);
    host.uplink6 = Uplink{.interface = "eth1", .mtu = 1400};
    CHECK(!plan_of(spec_of(Mode::nat), host).uplink->ipv6);  // it does not forward
    host.ipv6_forwarding = Ipv6Forwarding::by_interface;

    const auto plan = plan_of(spec_of(Mode::nat), host);
    REQUIRE(plan.uplink->ipv6);
    CHECK(plan.uplink->interface6 == "eth1");
    CHECK(host_address6_of(*plan.uplink).to_string() == "fd71:766d:0:1::ad5:0");
    CHECK(inner_address6_of(*plan.uplink).to_string() == "fd71:766d:0:1::ad5:1");
    auto guest = make_guest(spec_of(Mode::nat), plan);
    CHECK(address6_of(plan, guest.address)->to_string() == "fd71:766d:26::a");
    const auto inner = nft::to_text(inner_table(plan, guest).value());
    CHECK(inner.find("oifname \"up0\" ip6 saddr fd71:766d:26::/64 masquerade") !=
          std::string::npos);
    const auto outer = nft::to_text(host_table(plan).value());
    CHECK(outer.find("ip6 saddr fd71:766d:0:1::ad5:1 accept") != std::string::npos);
    CHECK(outer.find("ip6 saddr fd71:766d:0:1::ad5:1 oifname != \"qvm-1a2b3c4d\" masquerade") !=
          std::string::npos);
    CHECK(dhcp_hosts(plan, {guest}) ==
          "52:54:00:a8:1a:0a,192.168.26.10,[fd71:766d:26::a],web.qvm\n");
    CHECK(dns_hosts(plan, {guest}).find("fd71:766d:26::a web web.qvm\n") != std::string::npos);
    CHECK(has(dnsmasq_command(plan, "/dir"), "--dhcp-range=fd71:766d:26::,static,slaac,64,12h"));
    CHECK(has(dnsmasq_command(plan_of(spec_of(Mode::isolated), host), "/dir"),
              "--ra-param=tap0,600,0"));

    auto pasta = plan;
    take_pasta(pasta, guest);
    CHECK(pasta.uplink->ipv6);
    const auto command = pasta_command(pasta, 7);
    CHECK(has(command, "--interface=eth1"));
    CHECK(has(command, "--address=fd71:766d:0:1::ad5:1"));
    CHECK(!has(command, "--ipv4-only"));

    host.uplink->mtu = 1000;  // on such links there is none
    CHECK(!plan_of(spec_of(Mode::nat), host).subnet6);
}

TEST_CASE("port security: a guest sends as itself, and as no router") {
    auto host = host_with({});
    host.has_ipv6 = true;
    auto spec = spec_of(Mode::isolated);
    const auto lone = plan_of(spec, host);
    const auto text = nft::to_text(guard_table(lone, make_guest(spec, lone), "tap0").value());
    CHECK(text.find("type filter hook ingress device \"tap0\" priority filter") !=
          std::string::npos);
    CHECK(text.find("ether saddr != 52:54:00:a8:1a:0a drop") != std::string::npos);
    CHECK(text.find("ip6 saddr fd71:766d:26::/64 accept") != std::string::npos);
    CHECK(text.find("icmpv6 type nd-router-advert drop") != std::string::npos);
    spec.shared = true;
    const auto group = plan_of(spec, host);
    const auto shared = nft::to_text(guard_table(group, make_guest(spec, group), "tap3").value());
    CHECK(shared.find("ip6 saddr fd71:766d:26::a accept") != std::string::npos);
    CHECK(shared.find("ip6 saddr fd71:766d:26::/64 accept") == std::string::npos);
    spec.port_security = false;
    CHECK(!guard_table(group, make_guest(spec, group), "tap0"));
}

TEST_CASE("port isolation: no way to a neighbour, nor by the router, nor by the host") {
    auto spec = spec_of(Mode::isolated);
    spec.shared = true;
    CHECK(!inner_table(plan_of(spec), guest_of(spec)));
    spec.port_isolation = true;
    CHECK(nft::to_text(inner_table(plan_of(spec), guest_of(spec)).value())
              .find("iifname \"br0\" oifname \"br0\" drop") != std::string::npos);
    spec.mode = Mode::nat;
    CHECK(nft::to_text(host_table(plan_of(spec)).value())
              .find("iifname \"qvm-1a2b3c4d\" oifname \"qvm-1a2b3c4d\" drop") != std::string::npos);
}

TEST_CASE("the host is closed to guests of nat unless it is allowed, and then has a name") {
    auto spec = spec_of(Mode::nat);
    const auto reject = "iifname \"qvm-1a2b3c4d\" fib daddr type local reject";
    CHECK(nft::to_text(host_table(plan_of(spec)).value()).find(reject) != std::string::npos);
    CHECK(dns_hosts(plan_of(spec), {guest_of(spec)}).find("host") == std::string::npos);
    CHECK(nft::to_text(host_table(plan_of(spec_of(Mode::flat))).value()).find("reject") ==
          std::string::npos);
    const std::vector<ip::address> addresses{ip::make_address("203.0.113.2"),
                                             ip::make_address("2001:db8::2")};
    CHECK(!closed_table(plan_of(spec), addresses));
    spec.uplink = UplinkKind::pasta;
    const auto closed = nft::to_text(closed_table(plan_of(spec), addresses).value());
    CHECK(closed.find("oifname \"up0\" ip daddr 203.0.113.2 reject") != std::string::npos);
    CHECK(closed.find("oifname \"up0\" ip6 daddr 2001:db8::2 reject") != std::string::npos);

    spec.allow_host = true;
    CHECK(!closed_table(plan_of(spec), addresses));
    CHECK(!has(pasta_command(plan_of(spec), 7), "--no-map-gw"));
    spec.uplink = UplinkKind::veth;
    CHECK(nft::to_text(host_table(plan_of(spec)).value()).find("reject") == std::string::npos);
    CHECK(dns_hosts(plan_of(spec), {guest_of(spec)}).find("10.213.0.0 host host.qvm\n") !=
          std::string::npos);
}
