#include "netns/network.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>
#include <filesystem>

#include "netns/error.h"
#include "netns/host_watch.h"
#include "oracle.h"

using namespace qvm;
using namespace qvm::netns;
namespace fs = std::filesystem;

namespace {

struct Directory {
    Directory() {
        char name[] = "/tmp/qvm-test-XXXXXX";
        path = ::mkdtemp(name);
    }
    ~Directory() { fs::remove_all(path); }
    [[nodiscard]] fs::path leases() const { return path / "leases"; }
    fs::path path;
};

NetworkSpec spec_of(Mode mode, const std::string& id = "t1") {
    NetworkSpec spec;
    spec.mode = mode;
    spec.id = id;
    spec.guest_name = "web";
    return spec;
}

/// A network as the launcher makes it.
struct Made {
    explicit Made(const NetworkSpec& spec, const fs::path& leases)
        : host_facts(read_host_network(host)),
          claims(claim_networks(spec, host_facts)),
          plan(make_plan(spec, host_facts, claims)),
          guest(make_guest(spec, plan)),
          network(plan, guest, std::move(claims), host, leases) {}
    RouteSocket host;
    HostNetwork host_facts;
    Claims claims;
    NetworkPlan plan;
    GuestPlan guest;
    Network network;
};

/// What HostWatch tells the network "00000001".
class Changes {
  public:
    Changes() {
        boost::asio::co_spawn(context_, count(), boost::asio::detached);
        (void)told();
    }
    /// How often since the last time.
    int told() {
        context_.restart();
        context_.run_for(std::chrono::milliseconds{400});
        return std::exchange(told_, 0);
    }

  private:
    boost::asio::awaitable<void> count() {
        for (;;) co_await watch_.change(), ++told_;
    }
    boost::asio::io_context context_;
    HostWatch watch_{context_.get_executor(), "00000001", true};
    int told_ = 0;
};

std::string forwarding(const std::string& interface) {
    return oracle::sh("cat /proc/sys/net/ipv4/conf/" + interface + "/forwarding");
}

std::string picture_of_the_host() {
    return oracle::sh(
        "ip -br link; ip -br addr; ip route show table all; ip rule; nft list ruleset; "
        "sysctl -a 2>/dev/null | grep -E 'ipv4.*(forwarding|route_localnet)'");
}

}  // namespace

TEST_CASE("isolated: a TAP with the gateway's address, and nothing on the host") {
    const Directory directory;
    const auto before = picture_of_the_host();
    Made made{spec_of(Mode::isolated), directory.leases()};

    const auto& space = made.network.space();
    const auto links = oracle::json(space, "ip -j -d link");
    const auto tap = oracle::find(links, "ifname", "tap0");
    REQUIRE(tap.is_object());
    CHECK(tap.at("linkinfo").at("info_data").at("vnet_hdr") == true);
    CHECK(tap.at("linkinfo").at("info_data").at("persist") == false);
    const auto addresses =
        oracle::json(space, "ip -j -4 addr show tap0").at(0).at("addr_info").at(0);
    CHECK(addresses.at("local") == "192.168.26.1");
    CHECK(addresses.at("prefixlen") == 24);
    CHECK(links.as_array().size() == 2);
    CHECK(picture_of_the_host() == before);
}

TEST_CASE("nat: masquerade inside and outside, a /31, and the uplink's MTU all the way") {
    const Directory directory;
    const oracle::Internet internet(1400);
    const auto before = picture_of_the_host();
    {
        Made made{spec_of(Mode::nat), directory.leases()};
        const auto& space = made.network.space();
        for (const char* name : {"tap0", "up0"}) {
            INFO(name);
            const auto link = oracle::find(oracle::json(space, "ip -j link"), "ifname", name);
            REQUIRE(link.is_object());
            CHECK(link.at("mtu") == 1400);
        }
        const auto host_link = oracle::json("ip -j addr show qvm-t1").at(0);
        CHECK(host_link.at("mtu") == 1400);
        CHECK(host_link.at("addr_info").at(0).at("local") == "10.213.0.0");
        CHECK(host_link.at("addr_info").at(0).at("prefixlen") == 31);
        CHECK(forwarding("wan0") == "1\n");
        CHECK(forwarding("qvm-t1") == "1\n");
        CHECK(oracle::sh("cat /proc/sys/net/ipv4/ip_forward") == "0\n");

        // A stand-in for the guest: an address of the subnet on the guest's side of the router.
        oracle::sh(space, "ip addr add 192.168.26.10/32 dev lo");
        CHECK(oracle::answers(space, "198.51.100.7", "192.168.26.10"));
        CHECK(oracle::sh(internet.space, "ip route get 203.0.113.2").find("203.0.113.2") !=
              std::string::npos);
    }
    CHECK(picture_of_the_host() == before);
}

TEST_CASE("nat: the server outside sees the host's address") {
    const Directory directory;
    const oracle::Internet internet;
    Made made{spec_of(Mode::nat), directory.leases()};
    const auto& space = made.network.space();
    oracle::sh(space, "ip addr add 192.168.26.10/32 dev lo");
    oracle::sh(internet.space,
               "socat -u TCP-LISTEN:7000,reuseaddr SYSTEM:'echo $SOCAT_PEERADDR' "
               "> " +
                   (directory.path / "peer").string() +
                   " 2>/dev/null &"
                   " for i in $(seq 100); do ss -ltn | grep -q :7000 && exit 0; "
                   "sleep 0.02; done; exit 1");
    oracle::sh(space, "echo hello | socat - TCP:198.51.100.7:7000,bind=192.168.26.10");
    oracle::sh("for i in $(seq 100); do test -s " + (directory.path / "peer").string() +
               " && exit 0; sleep 0.02; done; exit 1");
    CHECK(oracle::sh("cat " + (directory.path / "peer").string()) == "203.0.113.2\n");
}

TEST_CASE("nat: a source that the guest made up does not get out") {
    const Directory directory;
    const oracle::Internet internet;
    Made made{spec_of(Mode::nat), directory.leases()};
    const auto& space = made.network.space();
    oracle::sh(space, "ip addr add 192.168.26.10/32 dev lo; ip addr add 8.8.8.8/32 dev lo");
    CHECK(oracle::answers(space, "198.51.100.7", "192.168.26.10"));
    oracle::sh(internet.space,
               "nft add table ip seen && nft 'add chain ip seen c { type filter hook prerouting "
               "priority 0; }' && nft add rule ip seen c ip saddr 8.8.8.8 counter");
    oracle::sh(space, "! ping -c1 -W1 -I 8.8.8.8 198.51.100.7");
    CHECK(oracle::sh(internet.space, "nft list table ip seen").find("packets 0") !=
          std::string::npos);
}

TEST_CASE("nat: the VM's host address leads to the guest") {
    const Directory directory;
    Made made{spec_of(Mode::nat), directory.leases()};
    const auto& space = made.network.space();
    oracle::sh(space, "ip addr add 192.168.26.10/32 dev lo");
    // The rule, as nft reads it back.
    const auto rules = oracle::sh(space, "nft list table inet qvm");
    CHECK(rules.find("ip daddr 10.213.0.1 dnat ip to 192.168.26.10") != std::string::npos);
    oracle::sh(space,
               "socat TCP-LISTEN:22,bind=192.168.26.10,reuseaddr SYSTEM:'echo guest' "
               ">/dev/null 2>&1 & for i in $(seq 100); do ss -ltn | grep -q :22 && exit 0; "
               "sleep 0.02; done; exit 1");
    CHECK(oracle::sh("socat - TCP:10.213.0.1:22") == "guest\n");
}

TEST_CASE("flat: the veth's end is a port of the bridge, and the host end is the gateway") {
    const Directory directory;
    const oracle::Internet internet;
    const auto before = picture_of_the_host();
    {
        Made made{spec_of(Mode::flat), directory.leases()};
        const auto& space = made.network.space();
        const auto up = oracle::find(oracle::json(space, "ip -j link"), "ifname", "up0");
        CHECK(up.at("master").as_string() == "br0");
        CHECK(
            oracle::json(space, "ip -j -4 addr show br0").at(0).at("addr_info").at(0).at("local") ==
            "192.168.26.2");
        CHECK(oracle::json("ip -j -4 addr show qvm-t1").at(0).at("addr_info").at(0).at("local") ==
              "192.168.26.1");
        CHECK(oracle::sh(space, "ip route").find("default via 192.168.26.1 dev br0") !=
              std::string::npos);
        CHECK(oracle::answers(space, "198.51.100.7", "192.168.26.2"));
        CHECK(oracle::sh("nft list table inet qvm-t1").find("oifname != \"qvm-t1\" masquerade") !=
              std::string::npos);
    }
    CHECK(picture_of_the_host() == before);
}

TEST_CASE("two nat networks have the same subnet and different /31s, and share the uplink") {
    const Directory directory;
    const oracle::Internet internet;
    auto first = std::make_unique<Made>(spec_of(Mode::nat, "t1"), directory.leases());
    auto second = std::make_unique<Made>(spec_of(Mode::nat, "t2"), directory.leases());
    CHECK(first->plan.subnet == second->plan.subnet);
    CHECK(first->guest.mac == second->guest.mac);
    CHECK(first->plan.uplink->inner_address != second->plan.uplink->inner_address);
    CHECK(forwarding("wan0") == "1\n");
    first.reset();
    CHECK(forwarding("wan0") == "1\n");
    second.reset();
    CHECK(forwarding("wan0") == "0\n");
    CHECK(!fs::exists(directory.leases()));
}

TEST_CASE("forwarding that was on stays on, and what a dead process left is swept") {
    const Directory directory;
    const oracle::Internet internet;
    oracle::sh("echo 1 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    { Made made{spec_of(Mode::nat), directory.leases()}; }
    CHECK(forwarding("wan0") == "1\n");

    oracle::sh("echo 0 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    std::string file;
    {
        const ForwardingLease lease{directory.leases(), "wan0"};
        file = fs::directory_iterator(directory.leases())->path().filename();
        sweep_forwarding(directory.leases());
        CHECK(forwarding("wan0") == "1\n");  // in use: not swept
    }
    CHECK(forwarding("wan0") == "0\n");
    oracle::sh("echo 1 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    fs::create_directory(directory.leases());
    oracle::sh("touch " + (directory.leases() / file).string());      // as a SIGKILL leaves it
    oracle::sh("touch " + (directory.leases() / "wan0@1").string());  // another namespace's
    sweep_forwarding(directory.leases());
    CHECK(forwarding("wan0") == "0\n");
    CHECK(!fs::exists(directory.leases() / file));
    CHECK(fs::exists(directory.leases() / "wan0@1"));
}

TEST_CASE("forwarding that the host has switched on for all meanwhile is left to it") {
    const Directory directory;
    const oracle::Internet internet;
    {
        const ForwardingLease lease{directory.leases(), "wan0"};
        oracle::sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    }
    CHECK(forwarding("wan0") == "1\n");
    // A host that had it on before, but not for this interface, gets that back.
    oracle::sh("echo 0 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    { const ForwardingLease lease{directory.leases(), "wan0"}; }
    CHECK(forwarding("wan0") == "0\n");
    oracle::sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    CHECK(!fs::exists(directory.leases()));
}

TEST_CASE("forwarding is given back to an interface that has another name by now") {
    const Directory directory;
    const oracle::Internet internet;
    {
        const ForwardingLease lease{directory.leases(), "wan0"};
        oracle::sh("ip link set wan0 down; ip link set wan0 name lan0; ip link set lan0 up");
        CHECK(lease.is_on("lan0"));
        CHECK(!lease.is_on("lo"));
    }
    CHECK(forwarding("lan0") == "0\n");
    CHECK(!fs::exists(directory.leases()));
}

TEST_CASE("one who is stopped while it takes a lease holds up nobody else's guest") {
    const Directory directory;
    const oracle::Internet internet;
    Made made{spec_of(Mode::nat), directory.leases()};
    oracle::sh("echo 0 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    {
        const UniqueFd stopped{::open(directory.leases().c_str(), O_RDONLY | O_CLOEXEC)};
        REQUIRE(stopped);
        REQUIRE(::flock(stopped.get(), LOCK_EX) == 0);
        CHECK_THROWS_AS(made.network.follow_host(), Error);
    }
    CHECK(made.network.follow_host().empty());
    CHECK(forwarding("wan0") == "1\n");
}

TEST_CASE("the uplink follows the host: another interface, a link that was cleared, a sysctl") {
    const Directory directory;
    const oracle::Internet internet;
    const auto before = picture_of_the_host();
    {
        Made made{spec_of(Mode::nat), directory.leases()};
        CHECK(made.network.follow_host().empty());

        oracle::sh(
            "ip link add wan9 type veth peer name wan8 && ip link set wan9 up && "
            "ip link set wan8 up && ip address add 203.0.113.129/25 dev wan9 && "
            "ip route replace default via 203.0.113.130");
        CHECK(made.network.follow_host().empty());
        CHECK(forwarding("wan9") == "1\n");
        CHECK(forwarding("wan0") == "1\n");  // what is beside the host there is reached, too
        oracle::sh("ip address flush dev wan0");
        CHECK(made.network.follow_host().empty());
        CHECK(forwarding("wan0") == "0\n");
        oracle::sh("ip address add 203.0.113.2/24 dev wan0");
        oracle::sh("ip route replace default via 203.0.113.1; ip link del wan9");
        CHECK(made.network.follow_host().empty());
        CHECK(forwarding("wan0") == "1\n");

        oracle::sh("ip address flush dev qvm-t1; ip link set qvm-t1 down");
        CHECK(made.network.follow_host().empty());
        CHECK(oracle::sh("ip -br addr show qvm-t1").find("10.213.0.0/31") != std::string::npos);

        oracle::sh(
            "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward");
        CHECK(forwarding("wan0") == "0\n");
        CHECK(made.network.follow_host().empty());
        CHECK(forwarding("wan0") == "1\n");
        CHECK(forwarding("qvm-t1") == "1\n");

        oracle::sh("ip route add 10.213.0.1/32 dev wan0");
        CHECK(made.network.follow_host().find("to 'wan0' and not to 'qvm-t1'") !=
              std::string::npos);
        oracle::sh("ip route del 10.213.0.1/32 dev wan0; ip route del default");
        CHECK(made.network.follow_host().find("no route to the outside") != std::string::npos);
        oracle::sh("ip route add default via 203.0.113.1");
        CHECK(made.network.follow_host().empty());

        oracle::sh("ip link del qvm-t1");
        CHECK(made.network.follow_host().find("not there any more") != std::string::npos);
    }
    CHECK(picture_of_the_host() == before);
}

TEST_CASE("all ways of the host are the guests', and nobody else's") {
    const Directory directory;
    const oracle::Internet internet;
    const Namespace office = Namespace::create();
    oracle::sh(fmt::format("ip link add wan9 type veth peer name eth0 netns /proc/{}/fd/{}",
                           ::getpid(), office.fd()));
    oracle::sh("ip address add 192.0.2.2/24 dev wan9 && ip link set wan9 up");
    oracle::sh(office,
               "ip address add 192.0.2.1/24 dev eth0 && ip link set eth0 up && "
               "ip route add default via 192.0.2.2");
    oracle::sh(internet.space, "ip route add 192.0.2.0/24 via 203.0.113.2");
    // The kernel notices the other end up to a second later.
    oracle::sh(
        "for i in $(seq 300); do ip link show wan9 | grep -q 'state UP' && exit; "
        "sleep 0.01; done; exit 1");
    const auto before = picture_of_the_host();
    {
        Made made{spec_of(Mode::nat), directory.leases()};
        const auto from_guest = made.guest.host_address->to_string();
        CHECK(oracle::answers(made.network.space(), "192.0.2.1", from_guest));
        CHECK(!oracle::answers(internet.space, "192.0.2.1", "203.0.113.1"));

        // By a rule of the host's to somewhere behind its second link.
        oracle::sh(office, "ip address add 198.18.0.1/32 dev eth0");
        oracle::sh(
            "ip rule add to 198.18.0.1 lookup 77; ip route add default via 192.0.2.1 table 77");
        CHECK(made.network.follow_host().empty());
        CHECK(oracle::answers(made.network.space(), "198.18.0.1", from_guest));

        // Somebody makes a router of the host, and of a host again.
        oracle::sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        CHECK(made.network.follow_host().empty());
        CHECK(oracle::answers(internet.space, "192.0.2.1", "203.0.113.1"));
        oracle::sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        CHECK(made.network.follow_host().empty());
        CHECK(oracle::answers(made.network.space(), "192.0.2.1", from_guest));
        CHECK(!oracle::answers(internet.space, "192.0.2.1", "203.0.113.1"));
        oracle::sh("ip rule del to 198.18.0.1 lookup 77; ip route flush table 77");
    }
    CHECK(picture_of_the_host() == before);
    oracle::sh("ip link del wan9");
}

TEST_CASE("a change of the host's network is told, and a burst of them once") {
    const oracle::Internet internet;
    Changes changes;
    CHECK(changes.told() == 0);
    for (const char* change :
         {"ip route add 198.18.0.0/15 dev wan0",
          "ip route del 198.18.0.0/15 dev wan0",
          "ip address add 203.0.113.77/32 dev wan0",
          "ip link set wan0 mtu 1300",
          "ip rule add to 198.18.0.0/15 lookup main",
          "echo 1 > /proc/sys/net/ipv4/ip_forward",
          "ip rule del to 198.18.0.0/15 lookup main; echo 0 > /proc/sys/net/ipv4/ip_forward",
          "ip nexthop add id 7 via 203.0.113.1 dev wan0; ip route add 198.18.0.0/15 nhid 7",
          "ip nexthop del id 7",
          "ip link add qvm-00000001 type veth peer name up0",
          "ip link del qvm-00000001",
          "nft add table ip some",
          "nft 'add chain ip some forward { type filter hook forward priority 0; policy drop; }'",
          "nft insert rule ip some forward iifname eth0 drop",
          "nft flush ruleset",
          "ip -6 address add 2001:db8::77/64 dev lo",
          "ip -6 route add 2001:db8:9::/48 dev lo",
          "ip -6 rule add to 2001:db8:9::1 lookup main",
          "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
          "ip -6 rule del to 2001:db8:9::1 lookup main; "
          "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"}) {
        INFO(change);
        oracle::sh(change);
        CHECK(changes.told() == 1);
    }
}

TEST_CASE("the host ends of others come and go untold") {
    const Directory directory;
    const oracle::Internet internet;
    oracle::sh("echo 1 > /proc/sys/net/ipv4/conf/wan0/forwarding");
    Changes changes;
    (void)changes.told();
    {
        Made other{spec_of(Mode::nat, "0000000a"), directory.leases()};
        CHECK(changes.told() == 0);
    }
    CHECK(oracle::becomes_empty("ip -br link | grep qvm-0000000a"));
    CHECK(changes.told() == 0);
    oracle::sh("ip link set wan0 mtu 1300");
    CHECK(changes.told() == 1);
}

TEST_CASE("several queues are several descriptors of one TAP") {
    const Directory directory;
    auto spec = spec_of(Mode::isolated);
    spec.queues = 3;
    Made made{spec, directory.leases()};
    const auto tap = made.network.take_tap();
    REQUIRE(tap.size() == 3);
    for (const auto& queue : tap) {
        ifreq request{};
        REQUIRE(::ioctl(queue.get(), TUNGETIFF, &request) == 0);
        CHECK(std::string{request.ifr_name} == "tap0");
        CHECK((request.ifr_flags & IFF_VNET_HDR) != 0);
        CHECK((request.ifr_flags & IFF_MULTI_QUEUE) != 0);
    }
}

TEST_CASE("shared: the network is there until the last who shares it is gone") {
    const Directory directory;
    const oracle::Internet internet;
    const auto before = picture_of_the_host();
    auto spec = spec_of(Mode::nat);
    spec.shared = true;
    auto first = std::make_unique<Made>(spec, directory.leases());
    CHECK(first->guest.host_address->to_string() == "10.213.255.10");
    const auto plan = first->plan;
    const auto guest = make_guest(spec, plan, {first->guest});
    std::vector<UniqueFd> shared;
    for (const int fd : first->network.shared())
        shared.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    RouteSocket host;
    std::optional<Network> second;
    second.emplace(plan, guest, std::move(shared), host, directory.leases());
    const auto& space = second->space();
    auto tap = second->take_tap();
    REQUIRE(tap.size() == 1);
    CHECK(oracle::find(oracle::json(space, "ip -j link"), "ifname", "tap1").at("master") == "br0");

    oracle::sh("ip route del 10.213.255.0/24");
    CHECK(second->follow_host() == "");
    CHECK(oracle::sh("ip route show 10.213.255.0/24").find("qvm-t1") != std::string::npos);

    first->network.leave_to_others();
    first.reset();
    space.run([] { CHECK(oracle::becomes_empty("ip -br link | grep tap0")); });
    CHECK(forwarding("wan0") == "1\n");
    CHECK(!Claim::take(*plan.uplink->guests));
    second->bind_dns();
    CHECK(second->take_dns().tcp);
    // The second guest's stand-in reaches the outside, and the host reaches it by its own address.
    oracle::sh(space, "ip addr add 192.168.26.11/32 dev lo");
    CHECK(oracle::answers(space, "198.51.100.7", "192.168.26.11"));
    oracle::sh(space,
               "socat TCP-LISTEN:22,bind=192.168.26.11,reuseaddr SYSTEM:'echo guest' "
               ">/dev/null 2>&1 & for i in $(seq 100); do ss -ltn | grep -q :22 && exit 0; "
               "sleep 0.02; done; exit 1");
    CHECK(oracle::sh("socat - TCP:10.213.255.11:22") == "guest\n");
    tap.clear();
    second->detach();
    second.reset();
    CHECK(picture_of_the_host() == before);
    CHECK(Claim::take(*plan.uplink->guests));
}

TEST_CASE("what dies with a descriptor: everything, without any clean-up of ours") {
    const Directory directory;
    const oracle::Internet internet;
    const auto before = picture_of_the_host();
    // A child makes a network and is killed; what it held is all there was.
    const auto child = ::fork();
    if (child == 0) {
        try {
            static Made made{spec_of(Mode::nat, "dead"), directory.leases()};
            ::kill(::getpid(), SIGKILL);
        } catch (...) {
        }
        ::_exit(1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    CHECK(oracle::sh("nft list tables").empty());
    CHECK(oracle::becomes_empty("ip -br link | grep qvm-"));
    sweep_forwarding(directory.leases());
    CHECK(picture_of_the_host() == before);
}

TEST_CASE("a step that fails is named, and nothing is left") {
    const Directory directory;
    const oracle::Internet internet;
    oracle::sh("ip link add qvm-t1 type bridge");
    const auto before = picture_of_the_host();
    RouteSocket host;
    const auto facts = read_host_network(host);
    const auto spec = spec_of(Mode::nat);
    auto claims = claim_networks(spec, facts);
    const auto plan = make_plan(spec, facts, claims);
    try {
        const Network network{plan, make_guest(spec, plan), std::move(claims), host,
                              directory.leases()};
        FAIL("must not adopt an interface that it did not create");
    } catch (const Error& error) {
        CHECK(error.error() == EEXIST);
        CHECK(std::string{error.what()}.find("add veth 'up0' with peer 'qvm-t1': File exists") ==
              0);
    }
    CHECK(picture_of_the_host() == before);
    oracle::sh("ip link del qvm-t1");
}

TEST_CASE("the plan stays clear of what the host routes") {
    const Directory directory;
    const oracle::Internet internet;
    oracle::sh(
        "ip route add 10.213.0.0/24 dev wan0; ip route add 192.168.26.0/24 dev wan0 table 99");
    {
        Made made{spec_of(Mode::nat), directory.leases()};
        CHECK(made.plan.uplink->host_address.to_string() == "10.213.1.0");
        CHECK(made.plan.subnet.to_string() == "192.168.27.0/24");
    }
    oracle::sh("ip route add 10.0.0.0/8 dev wan0");
    {
        Made made{spec_of(Mode::nat), directory.leases()};
        CHECK(made.plan.uplink->host_address.to_string() == "172.29.0.0");
    }
    oracle::sh("ip route flush table 99");
}
