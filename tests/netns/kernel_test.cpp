// What the design rests on, as the kernel has it: each of these is an assumption of netns/.
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <netlink/route/rtnl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <catch2/catch.hpp>

#include "netns/host_network.h"
#include "netns/namespace.h"
#include "netns/nft.h"
#include "netns/route_socket.h"
#include "netns/tap.h"
#include "oracle.h"

using namespace qvm;
using namespace qvm::netns;

TEST_CASE("a namespace lives as long as a descriptor of it, mounted nowhere") {
    UniqueFd socket;
    {
        const auto space = Namespace::create();
        space.run([&] { socket.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)); });
        oracle::sh(space, "ip link add left0 type bridge");
    }
    CHECK(socket);
    CHECK(oracle::sh("ip netns list").empty());
}

TEST_CASE("a veth's host end goes when the namespace of the other end does") {
    {
        const auto space = Namespace::create();
        oracle::sh("ip link add here0 type veth peer name there0 netns /proc/" +
                   std::to_string(::getpid()) + "/fd/" + std::to_string(space.fd()));
        CHECK(!oracle::sh("ip -br link show here0").empty());
    }
    CHECK(oracle::becomes_empty("ip -br link | grep here0"));
}

TEST_CASE("a TAP is gone with its last descriptor") {
    auto tap = open_tap("tap7", 1);
    CHECK(interface_index("tap7") > 0);
    CHECK(tap.name == "tap7");
    CHECK(open_tap("tap%d", 2).name == "tap0");
    tap.queues.clear();
    CHECK(oracle::becomes_empty("ip -br link | grep tap7"));
}

TEST_CASE("an owned table survives a flush by others and dies with its socket") {
    {
        nft::Socket socket;
        socket.commit({.name = "mine", .owned = true, .chains = {}});
        oracle::sh("nft flush ruleset");
        CHECK(oracle::sh("nft list tables").find("mine") != std::string::npos);
    }
    CHECK(oracle::sh("nft list tables").empty());
}

TEST_CASE("a claim is this process' alone and is free when it goes") {
    const auto network = boost::asio::ip::make_network_v4("10.213.9.8/31");
    auto claim = Claim::take(network);
    REQUIRE(claim);
    CHECK(!Claim::take(network));
    claim.reset();
    CHECK(Claim::take(network));
}

TEST_CASE("the calling thread never changes its namespace") {
    const auto before = oracle::sh("readlink /proc/self/ns/net");
    const auto space = Namespace::create();
    CHECK(oracle::sh(space, "readlink /proc/self/ns/net") != before);
    CHECK_THROWS_AS(space.run([] { throw std::runtime_error("inside"); }), std::runtime_error);
    CHECK(oracle::sh("readlink /proc/self/ns/net") == before);
}

TEST_CASE("an answer that was never read is not taken for another's") {
    std::vector<std::string> ways;
    std::optional<Uplink> uplink;
    const auto space = Namespace::create([&] {
        oracle::sh(
            "ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up;"
            "ip address add 203.0.113.5/24 dev d0; ip route add default via 203.0.113.1");
        RouteSocket host;
        for (int i = 0; i < 2; ++i) {
            // As a request is left that fails in the middle.
            REQUIRE(nl_rtgen_request(host.get(), RTM_GETADDR, AF_INET, NLM_F_DUMP) >= 0);
            ways = find_ways(host);
            REQUIRE(nl_rtgen_request(host.get(), RTM_GETADDR, AF_INET, NLM_F_DUMP) >= 0);
            uplink = find_uplink(host);
        }
    });
    CHECK(ways == std::vector<std::string>{"d0"});
    REQUIRE(uplink);
    CHECK(uplink->interface == "d0");
}

TEST_CASE("the host's addresses: each once, of both families, and none that is of one link only") {
    std::vector<std::string> texts;
    const auto space = Namespace::create([&] {
        oracle::sh(
            "ip link set lo up; ip link add d0 type veth peer name d1; ip link set d0 up;"
            "ip link set d1 up; ip address add 203.0.113.5/24 dev d0;"
            "ip address add 2001:db8::5/64 dev d0 nodad");
        RouteSocket host;
        for (const auto& address : read_host_addresses(host)) texts.push_back(address.to_string());
    });
    CHECK(texts == std::vector<std::string>{"203.0.113.5", "2001:db8::5"});
}
