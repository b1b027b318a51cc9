#include "launcher/vm_plan.h"

#include <catch2/catch.hpp>

using namespace qvm;

TEST_CASE("a name is made of the image's") {
    CHECK(default_name("/images/Debian_12.qcow2", "1a2b") == "debian-12-1a2b");
    CHECK(default_name("---.img", "1a2b") == "vm-1a2b");
    CHECK(default_name(std::nullopt, "1a2b") == "vm-1a2b");
    CHECK(default_name(std::string(200, 'x') + ".raw", "1a2b").size() <= 63);
    CHECK(parse_name(default_name("\xc3\xa9.qcow2", "1a2b")) == "vm-1a2b");
}

TEST_CASE("modes without a namespace have no network plan") {
    CHECK(!network_spec(parse_net("user"), "web", "1"));
    CHECK(!network_spec(parse_net("none"), "web", "1"));
    const auto spec = network_spec(parse_net("flat,mtu=1400"), "web", "1");
    REQUIRE(spec);
    CHECK(spec->mode == netns::Mode::flat);
    CHECK(spec->mtu == 1400U);
    CHECK(spec->guest_name == "web");
}

TEST_CASE("the plan of an isolated VM, as --dry-run prints it") {
    RunOptions options;
    options.net = parse_net("isolated");
    auto spec = network_spec(options.net, "web", "1a2b3c4d").value();
    const auto network = netns::make_plan(spec, {}, {});
    const auto plan =
        make_vm_plan(options, {}, "web", ImageFacts{"qcow2", 1 << 20}, network, false);
    const auto text = describe(plan);
    CHECK(
        text.starts_with("network:\n  1. create a network namespace\n"
                         "  2. inside: add TAP tap0 (vnet_hdr, queues 1)\n"
                         "  3. inside: add bridge br0 with 192.168.26.1/24, mtu 1500, ports: tap0\n"
                         "  4. inside: IPv4 forwarding on\n"
                         "  5. inside: run dnsmasq "));
    CHECK(text.find("\nqemu:\nqemu-system-x86_64 \\\n") != std::string::npos);
    CHECK(text.find(",mac=52:54:00:a8:1a:0a\n") != std::string::npos);
}

TEST_CASE("a MAC is checked in every mode that has one") {
    RunOptions options;
    options.net = parse_net("user,mac=nonsense");
    CHECK_THROWS_WITH(make_vm_plan(options, {}, "vm", {}, {}, false),
                      "mac 'nonsense': must look like 52:54:00:12:34:56");
    options.net = parse_net("user,mac=52:54:00:00:00:09");
    CHECK(make_vm_plan(options, {}, "vm", {}, {}, false).qemu.nic->mac == "52:54:00:00:00:09");
}

TEST_CASE("a kernel gets the serial console unless it is told otherwise") {
    RunOptions options;
    options.net = parse_net("none");
    options.kernel = "vmlinuz";
    CHECK(make_vm_plan(options, {}, "vm", {}, {}, false).qemu.append == "console=ttyS0");
    options.append = "quiet";
    CHECK(make_vm_plan(options, {}, "vm", {}, {}, false).qemu.append == "quiet");
}
