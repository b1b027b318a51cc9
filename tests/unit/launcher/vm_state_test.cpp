#include "launcher/vm_state.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "temporary.h"

using namespace qvm;

TEST_CASE("what ps --json has at least, also where there is nothing to say") {
    VmState state;
    state.name = "web";
    for (const auto& object : {to_short_json(state), to_json(state)}) {
        for (const char* key :
             {"name", "state", "pid", "qemu_pid", "group", "image", "net", "ports", "created"})
            CHECK(object.contains(key));
        const auto& net = object.at("net").as_object();
        for (const char* key : {"mode", "subnet", "gateway", "address", "mac", "host_address"})
            CHECK(net.contains(key));
        CHECK(net.at("address").is_null());
    }
}

TEST_CASE("user networking has QEMU's addresses") {
    VmState state;
    state.vm.net = parse_net("user");
    const LivingVm vm{to_json(state)};
    CHECK(vm.text("net.mode") == "user");
    CHECK(vm.text("net.address") == "10.0.2.15");
    CHECK(vm.text("net.host_address").empty());
    CHECK(vm.text("no.such.member").empty());
    CHECK(vm.text("name.is.a.string").empty());
    CHECK(vm.number("name") == 0);
}

TEST_CASE("a VM is read while its lock is held, whatever its file says") {
    const Temporary base;
    const auto run = base.path / "run";
    CHECK(!read_vm(run, "web"));
    {
        const VmDirectory directory{run, "web"};
        CHECK(read_vm(run, "web")->text("state") == "starting");  // nothing written yet
        write_file(directory.path() / "state.json", "half a {");
        CHECK(read_vm(run, "web")->text("name") == "web");
        VmState state;
        state.name = "web";
        state.state = "running";
        write_file(directory.path() / "state.json", serialize(to_json(state)));
        CHECK(read_vm(run, "web")->text("state") == "running");
        CHECK(read_vms(run).size() == 1);
    }
    CHECK(read_vms(run).empty());
}
