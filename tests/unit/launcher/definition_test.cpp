#include "launcher/definition.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <fstream>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;

namespace {

Definition everything() {
    Definition definition;
    definition.name = "web";
    definition.created = "2026-01-31T12:00:00Z";
    definition.virtual_size = 1 << 20;
    auto& vm = definition.vm;
    vm.image = "/images/disk.qcow2";
    vm.image_name = "debian:12";
    vm.disk_mib = 20480;
    vm.user_data = "/images/seed.yaml";
    vm.ssh_keys = {"/home/me/.ssh/id.pub"};
    vm.volumes = {parse_volume("/src:/src:ro"), parse_volume("/out:/out")};
    vm.drives = {parse_drive("/images/a:b.raw:ro:format=raw"), parse_drive("/images/c")};
    vm.memory_mib = 2048;
    vm.cpus = 4;
    vm.net = parse_net("nat,mac=52:54:00:00:00:01,mtu=1400");
    vm.group = "lab";
    vm.publish = {parse_publish("8080:80"), parse_publish("0:53/udp")};
    vm.kernel = "/boot/vmlinuz";
    vm.initrd = "/boot/initrd";
    vm.append = "quiet \"x\"";
    vm.arch = Architecture::aarch64;
    vm.firmware = parse_firmware("uefi");
    vm.secure_boot = true;
    vm.trust_backing = true;
    vm.accel = Accel::tcg;
    vm.qemu_args = {"-device", "usb-ehci"};
    return definition;
}

DefinitionStore store_in(const fs::path& path) {
    return DefinitionStore{Directories{path / "run", path / "data", path / "cache"}};
}

std::string failure_of(const std::string& text) {
    try {
        (void)parse_definition("web", text);
    } catch (const Failure& failure) {
        return failure.what();
    }
    return {};
}

}  // namespace

TEST_CASE("a definition is read as it was written") {
    const auto text = to_text(everything());
    CHECK(to_text(parse_definition("web", text)) == text);
    const auto vm = parse_definition("web", text).vm;
    CHECK(vm.memory_mib == 2048);
    CHECK(vm.net->mtu == 1400U);
    CHECK(vm.publish.at(1).udp);
    CHECK(vm.append == "quiet \"x\"");
    Definition least;
    least.vm.image = "/d";
    CHECK(to_text(parse_definition("", to_text(least))) == to_text(least));
    CHECK(!parse_definition("", to_text(least)).vm.net);
}

TEST_CASE("a definition that is none is refused with the reason") {
    CHECK(failure_of("") == "is not a JSON object");
    CHECK(failure_of("[]") == "is not a JSON object");
    CHECK(failure_of("{}") == "has version 0; this qvm knows 1");
    CHECK(failure_of(R"({"version":2,"vm":{}})") == "has version 2; this qvm knows 1");
    CHECK(failure_of(R"({"version":1})") == "'vm' is not an object");
    CHECK(failure_of(R"({"version":1,"vm":{"memory_mib":0}})") ==
          "'memory_mib' is not 1 to 1073741824");
    CHECK(failure_of(R"({"version":1,"vm":{"cpus":4294967297}})") == "'cpus' is not 1 to 255");
    CHECK(failure_of(R"({"version":1,"vm":{"cpus":"two"}})") == "'cpus' is not a whole number");
    CHECK(failure_of(R"({"version":1,"vm":{"net":"lan"}})") ==
          "'net' is 'lan', which unknown mode 'lan'");
    CHECK(failure_of(R"({"version":1,"vm":{"publish":[1]}})") ==
          "'publish' is not an array of strings");
    CHECK(failure_of(R"({"version":1,"vm":{"arch":"vax"}})") ==
          "'arch' is 'vax', which is not an architecture that is known");
    CHECK(failure_of(R"({"version":1,"vm":{},"firmware":{"code_format":"raw,file=/x"}})") ==
          "'code_format' is neither raw nor qcow2");
    CHECK(failure_of(R"({"version":1,"vm":{"new-member":1}})").empty());
}

TEST_CASE("the store: added once, read, removed") {
    const Temporary base;
    const auto store = store_in(base.path);
    CHECK(store.names().empty());
    CHECK(store.sweep() == 0);
    const auto definition = everything();
    store.add(definition);
    CHECK(store.names() == std::vector<std::string>{"web"});
    CHECK(to_text(store.read("web")) == to_text(definition));
    CHECK(fs::file_size(store.path("web") / DefinitionStore::overlay_name) > 0);
    CHECK_THROWS_WITH(store.add(definition), "--name 'web': a VM of that name exists");
    CHECK_THROWS_WITH(store.read("db"), "VM 'db': was not created");
    CHECK(store.sweep() == 0);

    CHECK(!store.last_end("web"));
    store.keep_end("web", {123, "the guest panicked", "2026-01-31T12:00:00Z"}, base.path / "none");
    CHECK(store.last_end("web")->exit_status == 123);
    store.remove("web");
    CHECK(store.names().empty());
    CHECK(fs::is_empty(base.path / "data/vm"));
    CHECK_THROWS_AS(store.remove("web"), Failure);
}

TEST_CASE("the store: a VM's firmware and TPM have files of their own") {
    const Temporary base;
    const auto store = store_in(base.path);
    auto definition = everything();
    const auto variables = base.path / "VARS.fd";
    std::ofstream{variables} << std::string(5000, 'v');
    definition.firmware = Firmware{.code = base.path / "CODE.fd",
                                   .code_format = "raw",
                                   .variables = variables,
                                   .variables_format = "raw",
                                   .smm = true};
    definition.vm.tpm = true;
    store.add(definition);
    CHECK(store.read("web").firmware == definition.firmware);
    CHECK(read_file(store.path("web") / DefinitionStore::variables_name) == std::string(5000, 'v'));
    CHECK(fs::file_size(store.path("web") / DefinitionStore::tpm_name) == 0);
    store.remove("web");
    CHECK(fs::is_empty(base.path / "data/vm"));

    fs::remove(variables);
    CHECK_THROWS_WITH(store.add(definition),
                      "open firmware '" + variables.string() + "': No such file or directory");
    CHECK(fs::is_empty(base.path / "data/vm"));
}

TEST_CASE("the store: what was not finished is no definition, and is swept") {
    const Temporary base;
    const auto store = store_in(base.path);
    store.add(everything());
    const auto aside = base.path / "data/vm/.db.1";
    fs::create_directory(aside);
    std::ofstream{aside / "overlay.qcow2"} << "x";
    std::ofstream{aside / "lock"} << "";
    CHECK(store.names() == std::vector<std::string>{"web"});
    {
        const auto lock = try_lock_file(aside / "lock");  // still at work
        CHECK(store.sweep() == 0);
    }
    CHECK(store.sweep() == 1);
    CHECK(!fs::exists(aside));
    CHECK(store.exists("web"));
}
