#include "launcher/vm_plan.h"

#include <catch2/catch.hpp>

#include "launcher/image_file.h"

using namespace qvm;

TEST_CASE("a name is made of the image's") {
    const auto name_of = [](const std::string& image) {
        VmOptions vm;
        vm.image = image;
        return default_name(vm, "1a2b");
    };
    CHECK(name_of("/images/Debian_12.qcow2") == "debian-12-1a2b");
    CHECK(name_of("---.img") == "vm-1a2b");
    CHECK(name_of(std::string(200, 'x') + ".raw").size() <= 63);
    CHECK(parse_name(name_of("\xc3\xa9.qcow2")) == "vm-1a2b");
    VmOptions vm;
    CHECK(default_name(vm, "1a2b") == "vm-1a2b");
    vm.image = "/data/image/blob/0123456789abcdef";
    vm.image_name = "alpine:3.22";
    CHECK(default_name(vm, "1a2b") == "alpine-3-22-1a2b");
    vm.snapshot = "/cache/warm/ready";
    CHECK(default_name(vm, "1a2b") == "ready-1a2b");
}

TEST_CASE("modes without a namespace have no network plan") {
    VmOptions options;
    options.net = parse_net("user");
    CHECK(!network_spec(options, "web", "1", netns::UplinkKind::veth));
    options.net = parse_net("none");
    CHECK(!network_spec(options, "web", "1", netns::UplinkKind::veth));
    options.net = parse_net("flat,mtu=1400");
    const auto spec = network_spec(options, "web", "1", netns::UplinkKind::veth);
    REQUIRE(spec);
    CHECK(spec->mode == netns::Mode::flat);
    CHECK(spec->mtu == 1400U);
    CHECK(spec->guest_name == "web");
    CHECK(!spec->shared);
    options.group = "lab";
    CHECK(network_spec(options, "web", "1", netns::UplinkKind::veth)->shared);
}

TEST_CASE("the plan of an isolated VM, as --dry-run prints it") {
    VmOptions options;
    options.net = parse_net("isolated");
    auto spec = network_spec(options, "web", "1a2b3c4d", netns::UplinkKind::veth).value();
    const auto network = netns::make_plan(spec, {}, {});
    const auto plan = make_vm_plan(options, {}, "web", ImageFacts{"qcow2", 1 << 20},
                                   Writes::throw_away, network, make_guest(spec, network), false);
    const auto text = describe(plan);
    CHECK(text.starts_with(
        "network:\n  1. create a network namespace\n"
        "  2. inside: add TAP tap0 (vnet_hdr, queues 1) with 192.168.26.1/24, mtu 1500\n"
        "  3. inside: table netdev qvm-tap0 {\n"));
    CHECK(text.find("  4. inside: IPv4 forwarding on\n  5. inside: run dnsmasq ") !=
          std::string::npos);
    CHECK(text.find("\nqemu:\nqemu-system-x86_64 \\\n") != std::string::npos);
    CHECK(text.find(",mac=52:54:00:a8:1a:0a \\\n") != std::string::npos);
}

TEST_CASE("a port on a bridge: a MAC that is the VM's own, and no addresses") {
    const auto net = parse_net("bridge=br0");
    const auto port = port_plan(net, "web", "1a2b3c4d", 1400, "0123");
    CHECK(port.link == "qvm-1a2b3c4d");
    CHECK(port.mtu == 1400U);
    CHECK(port.mac == port_plan(net, "web", "99999999", 1500, "0123").mac);
    CHECK(port.mac != port_plan(net, "db", "1a2b3c4d", 1400, "0123").mac);
    CHECK(port.mac != port_plan(net, "web", "1a2b3c4d", 1400, "4567").mac);
    CHECK(port_plan(parse_net("bridge=br0,mac=52:54:00:00:00:07"), "web", "1", 1500, "").mac ==
          "52:54:00:00:00:07");
    const auto text = netns::nft::to_text(netns::guard_table(port).value());
    CHECK(text.find("ether saddr != " + port.mac + " drop") != std::string::npos);
    CHECK(text.find("ip saddr") == std::string::npos);
    CHECK(nic_of(port, false).queues == 1);
    CHECK(!guard_table(port_plan(parse_net("bridge=br0,port-security=off"), "web", "1", 1500, "")));
}

TEST_CASE("a MAC is checked in every mode that has one") {
    VmOptions options;
    options.net = parse_net("user,mac=nonsense");
    CHECK_THROWS_WITH(make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false),
                      "mac 'nonsense': must look like 52:54:00:12:34:56");
    options.net = parse_net("user,mac=52:54:00:00:00:09");
    CHECK(make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false).qemu.nic->mac ==
          "52:54:00:00:00:09");
}

TEST_CASE("a disk grows, and does not shrink") {
    constexpr std::uint64_t mib = 1024 * 1024;
    CHECK(disk_size({}, 3 * mib + 512) == 3 * mib + 512);
    CHECK(disk_size(4, 3 * mib + 512) == 4 * mib);
    CHECK(disk_size(4, 4 * mib) == 4 * mib);
    CHECK_THROWS_WITH(disk_size(4, 4 * mib + 512), "--disk-size 4M: the image has 5 MiB already");
}

TEST_CASE("a kernel gets the serial console unless it is told otherwise") {
    VmOptions options;
    options.net = parse_net("none");
    options.kernel = "vmlinuz";
    CHECK(make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false).qemu.append ==
          "console=ttyS0");
    options.append = "quiet";
    CHECK(make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false).qemu.append ==
          "quiet");
}

TEST_CASE("what the user leaves open is the host's architecture, and what boots there") {
    using Kind = FirmwareOption::Kind;
    const auto settled = [](const char* arch, const char* firmware, bool secure_boot = false) {
        VmOptions vm;
        if (*arch != '\0') vm.arch = parse_architecture(arch);
        if (*firmware != '\0') vm.firmware = parse_firmware(firmware);
        vm.secure_boot = secure_boot;
        settle_machine(vm, Architecture::x86_64);
        return vm;
    };
    CHECK(settled("", "").arch == Architecture::x86_64);
    CHECK(settled("", "").firmware->kind == Kind::bios);
    CHECK(settled("", "", true).firmware->kind == Kind::uefi);
    CHECK(settled("arm64", "").firmware->kind == Kind::uefi);
    CHECK(settled("arm64", "QEMU_EFI.fd").firmware->kind == Kind::file);
    CHECK(has_uefi(settled("arm64", "")));
    CHECK(!has_uefi(settled("arm64", "QEMU_EFI.fd")));
    CHECK_THROWS_WITH(settled("arm64", "bios"),
                      "--firmware bios: is a PC's, and an aarch64 machine is none");
}

TEST_CASE("another architecture has its own QEMU, machine and console") {
    VmOptions options;
    options.net = parse_net("none");
    options.arch = Architecture::aarch64;
    options.firmware = parse_firmware("/firmware/QEMU_EFI.fd");
    options.tpm = true;
    options.kernel = "vmlinuz";
    const auto plan = make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false);
    CHECK(plan.qemu.append == "console=ttyAMA0");
    CHECK(plan.qemu.bios == "/firmware/QEMU_EFI.fd");
    const auto text = describe(plan);
    CHECK(text.starts_with("tpm:\nswtpm socket \\\n"));
    CHECK(text.find("\nqemu:\nqemu-system-aarch64 \\\n") != std::string::npos);
    CHECK(text.find("-machine virt,gic-version=max,memory-backend=memory \\\n") !=
          std::string::npos);
}

TEST_CASE("the firmware that was chosen, as --dry-run prints it") {
    VmOptions options;
    options.net = parse_net("none");
    auto plan = make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false);
    add_firmware({.code = "/firmware/CODE.fd",
                  .code_format = "raw",
                  .variables = "/firmware/VARS.fd",
                  .variables_format = "qcow2",
                  .smm = true},
                 plan);
    CHECK(plan.qemu.flash->variables_format == "qcow2");
    const auto text = describe(plan);
    CHECK(
        text.starts_with("firmware:\n  /firmware/CODE.fd\n"
                         "  variables at first: /firmware/VARS.fd\n\nqemu:\n"));
    CHECK(text.find(",pflash0=firmware,pflash1=variables,smm=on \\\n") != std::string::npos);
}

TEST_CASE("ports of user networking are QEMU's") {
    VmOptions options;
    options.net = parse_net("user");
    options.publish = {parse_publish("8080:80"), parse_publish("0.0.0.0:53:53/udp")};
    const auto plan = make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false);
    CHECK(plan.qemu.nic->host_forwards ==
          std::vector<std::string>{"tcp:127.0.0.1:8080-:80", "udp:0.0.0.0:53-:53"});
    options.publish = {parse_publish("[::1]:8080:80")};
    CHECK_THROWS_WITH(make_vm_plan(options, {}, "vm", {}, Writes::throw_away, {}, {}, false),
                      "--publish '[::1]:8080:80/tcp': QEMU's user networking forwards IPv4 only");
}

TEST_CASE("what a guest writes is flushed where it is kept") {
    const auto command = [](Writes writes) {
        const auto plan =
            make_vm_plan({}, {}, "vm", ImageFacts{"qcow2", 1 << 20}, writes, {}, {}, false);
        return shell_text(qemu_command(plan.qemu));
    };
    CHECK(command(Writes::throw_away).find("cache.no-flush=on") != std::string::npos);
    CHECK(command(Writes::keep_overlay).find("no-flush") == std::string::npos);
    CHECK(command(Writes::keep_overlay).find("backing=base") != std::string::npos);
    CHECK(command(Writes::image).find("no-flush") == std::string::npos);
}
