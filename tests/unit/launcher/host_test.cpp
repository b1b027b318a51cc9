#include "launcher/host.h"

#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;

namespace {

HostFacts able() {
    return {.memory_mib = 8192,
            .has_qemu = {Architecture::x86_64},
            .has_dnsmasq = true,
            .has_qemu_img = true,
            .has_virtiofsd = true,
            .has_pasta = true,
            .privileged = true};
}

VmOptions with(NetOption::Mode mode) {
    VmOptions options;
    options.image = "disk.qcow2";
    options.net.emplace().mode = mode;
    return options;
}

AccelChoice choose(Accel wanted, const KvmFacts& host) {
    return choose_accel(wanted, Architecture::x86_64, Architecture::x86_64, host);
}

Failure failure_of(const VmOptions& options, const HostFacts& host, bool dry_run = false) {
    try {
        check_host(options, host, dry_run);
    } catch (const Failure& failure) {
        return failure;
    }
    return Failure{""};
}

}  // namespace

TEST_CASE("KVM only where the device opens and the CPU shows vmx or svm") {
    KvmFacts host{.cpu_flag = "vmx"};
    CHECK(choose(Accel::automatic, host).kvm);
    CHECK(choose(Accel::kvm, host).kvm);
    CHECK(!choose(Accel::tcg, host).kvm);
    CHECK(choose(Accel::tcg, host).why_not_kvm.empty());

    host.vm_error = EBUSY;
    CHECK(choose(Accel::automatic, host).why_not_kvm ==
          "/dev/kvm makes no VM: Device or resource busy");
    host.cpu_flag.clear();
    CHECK(!choose(Accel::automatic, host).kvm);
    CHECK(choose(Accel::automatic, host).why_not_kvm == "the CPU shows neither vmx nor svm");
    CHECK_THROWS_AS(choose(Accel::kvm, host), Failure);

    host.open_error = EACCES;
    CHECK(choose(Accel::automatic, host).why_not_kvm == "/dev/kvm: Permission denied");
}

TEST_CASE("KVM is for guests of the host's own architecture") {
    const KvmFacts host{.cpu_flag = "vmx"};
    const auto choose_arm = [&](Accel wanted) {
        return choose_accel(wanted, Architecture::aarch64, Architecture::x86_64, host);
    };
    CHECK(!choose_arm(Accel::automatic).kvm);
    CHECK(choose_arm(Accel::automatic).why_not_kvm == "the guest is aarch64, the host x86_64");
    CHECK(choose_arm(Accel::automatic).cpu == "max,pauth-impdef=on");
    CHECK(choose_arm(Accel::tcg).cpu == "max,pauth-impdef=on");
    CHECK_THROWS_WITH(choose_arm(Accel::kvm), "--accel kvm: the guest is aarch64, the host x86_64");
}

TEST_CASE("the uplink is pasta where there is no privilege, or where it was asked for") {
    CHECK(choose_uplink(Uplink::automatic, true) == netns::UplinkKind::veth);
    CHECK(choose_uplink(Uplink::automatic, false) == netns::UplinkKind::pasta);
    CHECK(choose_uplink(Uplink::pasta, true) == netns::UplinkKind::pasta);
    CHECK(choose_uplink(Uplink::veth, true) == netns::UplinkKind::veth);
}

TEST_CASE("what needs root says so, and a dry run needs none") {
    auto host = able();
    host.privileged = false;
    for (const auto mode : {NetOption::Mode::nat, NetOption::Mode::isolated, NetOption::Mode::none})
        CHECK(std::string{failure_of(with(mode), host).what()}.empty());
    const auto flat = with(NetOption::Mode::flat);
    CHECK_THAT(failure_of(flat, host).what(), Catch::StartsWith("--net flat: needs root"));
    CHECK(std::string{failure_of(flat, host, true).what()}.empty());
    auto veth = with(NetOption::Mode::nat);
    veth.uplink = Uplink::veth;
    CHECK_THAT(failure_of(veth, host).what(), Catch::StartsWith("--uplink veth: needs root"));
    CHECK(std::string{failure_of(veth, able()).what()}.empty());

    host.has_pasta = false;
    CHECK(failure_of(with(NetOption::Mode::nat), host).hint() == "apt-get install passt");
    CHECK(std::string{failure_of(with(NetOption::Mode::isolated), host).what()}.empty());
}

TEST_CASE("the CPU is the host's, less what its KVM refuses") {
    KvmFacts host{.cpu_flag = "vmx"};
    CHECK(choose(Accel::kvm, host).cpu == "host");
    CHECK(choose(Accel::tcg, host).cpu == "max");
    host.sets_arch_capabilities = false;
    CHECK(choose(Accel::automatic, host).cpu == "host,-arch-capabilities");
    CHECK(choose(Accel::tcg, host).cpu == "max");
}

TEST_CASE("what the host cannot do is said, with the remedy") {
    const auto nat = with(NetOption::Mode::nat);
    CHECK(std::string{failure_of(nat, able()).what()}.empty());

    auto host = able();
    host.has_dnsmasq = false;
    CHECK(std::string{failure_of(nat, host).what()} == "find 'dnsmasq': it is not installed");
    CHECK(failure_of(nat, host).hint() == "apt-get install dnsmasq-base");
    CHECK(std::string{failure_of(with(NetOption::Mode::user), host).what()}.empty());

    host = able();
    host.has_qemu.clear();
    CHECK(failure_of(nat, host).hint() == "apt-get install qemu-system-x86");

    auto arm = nat;
    arm.arch = Architecture::aarch64;
    CHECK(std::string{failure_of(arm, able()).what()} ==
          "find 'qemu-system-aarch64': it is not installed");
    CHECK(failure_of(arm, able()).hint() == "apt-get install qemu-system-arm");
    auto measured = nat;
    measured.tpm = true;
    CHECK(failure_of(measured, able()).hint() == "apt-get install swtpm");

    host = able();
    host.tun_error = EACCES;
    CHECK(failure_of(nat, host).hint() == "chmod 0666 /dev/net/tun");
    host.tun_error = ENOENT;
    CHECK(failure_of(nat, host).hint() == "modprobe tun");
    CHECK(std::string{failure_of(nat, host).what()} ==
          "open '/dev/net/tun': No such file or directory");
    CHECK(std::string{failure_of(with(NetOption::Mode::none), host).what()}.empty());

    auto big = with(NetOption::Mode::none);
    big.memory_mib = 8193;
    CHECK(std::string{failure_of(big, able()).what()} ==
          "--memory: 8193 MiB is more than this host's 8192 MiB");
}

TEST_CASE("a CPU is known by what does not change while the host runs") {
    const std::string cpu =
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\nmicrocode\t: 0x1\n"
        "cpu MHz\t\t: 2596.1\nflags\t\t: fpu vmx\nbogomips\t: 5192.2\n\n";
    const std::string second = "processor\t: 1\nflags\t\t: fpu\n\n";
    const auto with = [&](const std::string& old, const std::string& now) {
        auto text = cpu;
        return text.replace(text.find(old), old.size(), now);
    };
    const auto identity = cpu_identity(cpu);
    CHECK(cpu_identity(cpu + second) == identity);
    CHECK(cpu_identity(with("2596.1", "1200.0")) == identity);
    CHECK(cpu_identity(with("5192.2", "5192.3")) == identity);
    CHECK(cpu_identity(with("0x1", "0x2")) != identity);
    CHECK(cpu_identity(with(" vmx", "")) != identity);
    CHECK(cpu_identity("").empty());
}
