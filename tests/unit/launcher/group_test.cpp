#include "launcher/group.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "launcher/failure.h"
#include "launcher/vm_state.h"
#include "temporary.h"

using namespace qvm;
namespace ip = boost::asio::ip;

namespace {

netns::NetworkPlan plan_of(netns::Mode mode) {
    netns::NetworkSpec spec;
    spec.mode = mode;
    spec.id = "1a2b3c4d";
    spec.shared = true;
    netns::HostNetwork host;
    host.uplink = netns::Uplink{.interface = "eth0", .mtu = 1400};
    return netns::make_plan(spec, host, netns::claim_networks(spec, host));
}

/// What a supervisor has written of itself.
void write_member(const std::filesystem::path& directory, const std::string& name,
                  const std::string& group, const char* address) {
    VmState state;
    state.name = name;
    state.vm.group = group;
    state.network = plan_of(netns::Mode::isolated);
    state.guest.emplace();
    state.guest->address = ip::make_address_v4(address);
    state.guest->mac = "52:54:00:00:00:01";
    write_file(directory / "state.json", serialize(to_json(state)));
}

}  // namespace

TEST_CASE("a network's plan gets to those who join as it is") {
    for (const auto mode : {netns::Mode::isolated, netns::Mode::nat, netns::Mode::flat}) {
        const auto plan = plan_of(mode);
        const auto read = parse_network_plan(to_text(plan));
        CHECK(to_text(read) == to_text(plan));
        CHECK(read.mode == mode);
        CHECK(read.subnet == plan.subnet);
        CHECK(read.uplink.has_value() == plan.uplink.has_value());
        if (mode == netns::Mode::nat) CHECK(read.uplink->guests == plan.uplink->guests);
    }
    for (const char* text : {"", "{}", "[]", R"({"mode":"bus"})"})
        CHECK_THROWS_AS(parse_network_plan(text), std::exception);
}

TEST_CASE("the members of a group are its VMs that live") {
    const Temporary base;
    const auto run = base.path / "run";
    const VmDirectory web{run, "web"}, db{run, "db"}, other{run, "other"};
    write_member(web.path(), "web", "lab", "192.168.26.10");
    write_member(db.path(), "db", "lab", "192.168.26.11");
    write_member(other.path(), "other", "", "192.168.26.10");
    {
        const VmDirectory gone{run, "gone"};
        write_member(gone.path(), "gone", "lab", "192.168.26.12");
        CHECK(group_guests(run, "lab").size() == 3);
    }
    const auto guests = group_guests(run, "lab", "web");
    REQUIRE(guests.size() == 1);
    CHECK(guests[0].name == "db");
    CHECK(guests[0].address.to_string() == "192.168.26.11");
    CHECK(group_guests(run, "nobody").empty());
}

TEST_CASE("a seat: the first leads, and the group's directory goes with it") {
    const Temporary base;
    const Directories directories{base.path / "run", base.path / "data", base.path / "cache"};
    {
        const GroupSeat seat{directories, "lab", "web"};
        CHECK(!seat.joined());
        CHECK(seat.others().empty());
        CHECK(std::filesystem::exists(directories.groups() / "lab/leader.sock"));
        CHECK(!sweep_group(directories.groups() / "lab"));
    }
    CHECK(!std::filesystem::exists(directories.groups()));
}

TEST_CASE("what a dead leader left is swept, and does not stand in the way") {
    const Temporary base;
    const Directories directories{base.path / "run", base.path / "data", base.path / "cache"};
    const auto lab = directories.groups() / "lab";
    std::filesystem::create_directories(lab);
    write_file(lab / "leader", "");
    write_file(lab / "leader.sock", "");
    write_file(lab / "hosts", "");
    { const GroupSeat seat{directories, "lab", "web"}; }
    CHECK(!std::filesystem::exists(lab));
    std::filesystem::create_directories(lab);
    write_file(lab / "leader", "");
    CHECK(sweep_group(lab));
    std::filesystem::create_directories(lab);
    write_file(lab / "precious", "");
    CHECK(!sweep_group(lab));
    CHECK(std::filesystem::exists(lab / "precious"));
}
