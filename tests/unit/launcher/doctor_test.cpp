#include "launcher/doctor.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <cerrno>

using namespace qvm;
using Status = Finding::Status;

namespace {

constexpr std::uint64_t gib = 1024 * 1024 * 1024;

DoctorFacts able() {
    return {.qemu = {"/usr/bin/qemu-system-x86_64", "7.2.22"},
            .qemu_aarch64 = {"/usr/bin/qemu-system-aarch64", "7.2.22"},
            .qemu_img = {"/usr/bin/qemu-img", "7.2.22"},
            .dnsmasq = {"/usr/sbin/dnsmasq", "2.90"},
            .pasta = {"/usr/bin/pasta", ""},
            .ssh = {"/usr/bin/ssh", ""},
            .virtiofsd = "/usr/lib/qemu/virtiofsd",
            .swtpm = {"/usr/bin/swtpm", "0.7.1"},
            .uefi = {{}, "/firmware/OVMF.fd", "/firmware/OVMF.secboot.fd"},
            .uefi_aarch64 = {{}, "/firmware/AAVMF.fd", "/firmware/AAVMF.ms.fd"},
            .libcurl = "/lib/x86_64-linux-gnu/libcurl.so.4",
            .gpgv = {"/usr/bin/gpgv", ""},
            .kvm = {.open_error = 0, .vm_error = 0, .cpu_flag = "vmx"},
            .kvm_group = "kvm",
            .tun_error = 0,
            .vhost_error = 0,
            .namespaces = {.privileged = true, .error = 0, .nft_error = 0, .sysctls = {}},
            .firewall = {},
            .directories = {{"run", "QVM_RUN_DIR", "/run/qvm", 0},
                            {"cache", "QVM_CACHE_DIR", "/var/cache/qvm", 0}},
            .cache_free = gib,
            .descriptor_limit = 4096};
}

/// The first finding of that name.
Finding find(const std::string& name, const DoctorFacts& facts) {
    for (const auto& finding : judge(facts))
        if (finding.name == name) return finding;
    FAIL("there is no finding '" << name << "'");
    return {};
}

Finding kvm(const KvmFacts& facts, const std::string& group = {}) {
    auto host = able();
    host.kvm = facts;
    host.kvm_group = group;
    return find("kvm", host);
}

Finding tun(int error) {
    auto host = able();
    host.tun_error = error;
    return find("tun", host);
}

Finding namespaces(const NamespaceFacts& facts) {
    auto host = able();
    host.namespaces = facts;
    return find("namespaces", host);
}

Finding nftables(const NamespaceFacts& facts) {
    auto host = able();
    host.namespaces = facts;
    return find("nftables", host);
}

}  // namespace

TEST_CASE("a host that has everything gets no remedy") {
    for (const auto& finding : judge(able())) {
        INFO(finding.name);
        CHECK(finding.status == Status::ok);
        CHECK(!finding.found.empty());
        CHECK(finding.remedy.empty());
    }
    CHECK(exit_status(judge(able())) == 0);
}

TEST_CASE("programs: what is not installed, and a QEMU that is too old") {
    CHECK(find("qemu", able()).found == "7.2.22 (/usr/bin/qemu-system-x86_64)");
    CHECK(find("pasta", able()).found == "/usr/bin/pasta");

    auto host = able();
    host.qemu = host.qemu_img = host.dnsmasq = host.pasta = {};
    CHECK(find("qemu", host) == Finding{"qemu", Status::missing, "it is not installed",
                                        "apt-get install qemu-system-x86"});
    CHECK(find("qemu-img", host).remedy == "apt-get install qemu-utils");
    CHECK(find("dnsmasq", host) == Finding{"dnsmasq", Status::missing, "it is not installed",
                                           "apt-get install dnsmasq-base"});
    CHECK(find("pasta", host) ==
          Finding{"pasta", Status::warning, "it is not installed", "apt-get install passt"});

    host = able();
    for (const auto* version : {"7.1.9", "6.2.0", ""}) {
        host.qemu.version = version;
        CHECK(find("qemu", host).status == Status::missing);
    }
    for (const auto* version : {"7.2", "7.10.0", "8.0.2", "10.1.0"}) {
        host.qemu.version = version;
        CHECK(find("qemu", host).status == Status::ok);
    }
}

TEST_CASE("versions are read from what programs print") {
    CHECK(version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == "7.2.22");
    CHECK(version_in("Dnsmasq version 2.90  Copyright (c) 2000-2024 Simon Kelley") == "2.90");
    CHECK(version_in("version 8") == "8");
    CHECK(version_in("version of tomorrow").empty());
    CHECK(version_in("pasta 0.0\nGNU Affero GPL version 3 or later").empty());
    CHECK(version_in("").empty());
}

TEST_CASE("without KVM it is a warning that says what keeps guests from it") {
    const std::string slower = ": QEMU's TCG runs guests, much slower";
    const std::string enable =
        "enable VT-x or AMD-V in the firmware, or nested virtualisation where this host is a guest";

    const auto absent = kvm({.open_error = ENOENT, .cpu_flag = "vmx"});
    CHECK(absent.status == Status::warning);
    CHECK(absent.found == "/dev/kvm: No such file or directory" + slower);
    CHECK(absent.remedy == "modprobe kvm_intel");
    CHECK(kvm({.open_error = ENODEV, .cpu_flag = "svm"}).remedy == "modprobe kvm_amd");

    CHECK(kvm({.open_error = EACCES, .cpu_flag = "vmx"}, "kvm").remedy ==
          "usermod -aG kvm $USER, then log in again");
    CHECK(kvm({.open_error = EACCES, .cpu_flag = "vmx"}).remedy == "chmod 0666 /dev/kvm");
    CHECK(kvm({.open_error = EPERM, .cpu_flag = "vmx"}).remedy ==
          "let this container have it, such as docker run --device=/dev/kvm");

    const auto useless = kvm({.open_error = 0});
    CHECK(useless.status == Status::warning);
    CHECK(useless.found == "/dev/kvm opens, but the CPU shows neither vmx nor svm" + slower);
    CHECK(useless.remedy == enable);
    CHECK(kvm({.open_error = EACCES}, "kvm").found ==
          "/dev/kvm: Permission denied, and the CPU shows neither vmx nor svm" + slower);
    CHECK(kvm({.open_error = EACCES}, "kvm").remedy == enable);

    const auto refusing = kvm({.vm_error = EBUSY, .cpu_flag = "vmx"});
    CHECK(refusing.found == "/dev/kvm makes no VM: Device or resource busy" + slower);
    CHECK(refusing.remedy == "end the other hypervisor on this host");
    CHECK(kvm({.vm_error = EIO, .cpu_flag = "vmx"}).remedy == enable);
}

TEST_CASE("/dev/net/tun is needed, vhost-net only helps") {
    CHECK(tun(ENOENT) == Finding{"tun", Status::missing, "/dev/net/tun: No such file or directory",
                                 "modprobe tun"});
    CHECK(tun(EACCES).remedy == "chmod 0666 /dev/net/tun");
    CHECK(tun(EPERM).remedy ==
          "let this container have it, such as docker run --device=/dev/net/tun");

    auto host = able();
    host.vhost_error = ENOENT;
    CHECK(find("vhost-net", host) == Finding{"vhost-net", Status::warning,
                                             "/dev/vhost-net: No such file or directory",
                                             "modprobe vhost_net"});
    CHECK(exit_status(judge(host)) == 0);
}

TEST_CASE("whoever forbids namespaces is named") {
    CHECK(namespaces({}).found == "may be made, in a user namespace");
    CHECK(namespaces({.error = EPERM}).remedy == "run qvm as root");
    CHECK(namespaces({.privileged = true, .error = EPERM}).remedy ==
          "let this container make them, such as docker run --privileged");

    const auto forbidden = [](const std::string& sysctl, const std::string& value, int error) {
        return namespaces({.error = error, .sysctls = {{sysctl, value}}});
    };
    const auto finding = forbidden("kernel.unprivileged_userns_clone", "0", EPERM);
    CHECK(finding.status == Status::missing);
    CHECK(finding.found == "Operation not permitted (kernel.unprivileged_userns_clone = 0)");
    CHECK(finding.remedy == "sysctl -w kernel.unprivileged_userns_clone=1");
    CHECK(forbidden("user.max_user_namespaces", "0", ENOSPC).remedy ==
          "sysctl -w user.max_user_namespaces=10000");
    CHECK(forbidden("user.max_net_namespaces", "0", ENOSPC).remedy ==
          "sysctl -w user.max_net_namespaces=10000");
    CHECK(forbidden("user.max_user_namespaces", "96365", EPERM).remedy == "run qvm as root");

    // Root needs no user namespace.
    CHECK(namespaces(
              {.privileged = true, .error = EPERM, .sysctls = {{"user.max_user_namespaces", "0"}}})
              .remedy == "let this container make them, such as docker run --privileged");
}

TEST_CASE("AppArmor's user namespace, in which nothing may be done, is none") {
    const NamespaceFacts facts{.nft_error = EPERM,
                               .sysctls = {{"kernel.apparmor_restrict_unprivileged_userns", "1"}}};
    CHECK(namespaces(facts).status == Status::missing);
    CHECK(namespaces(facts).remedy == "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0");
    CHECK(nftables(facts).status == Status::warning);
    CHECK(nftables(facts).remedy == namespaces(facts).remedy);
}

TEST_CASE("nftables: the module or the kernel that is missing") {
    const auto with = [](int error) { return nftables({.privileged = true, .nft_error = error}); };
    CHECK(with(EOPNOTSUPP) == Finding{"nftables", Status::missing,
                                      "create a table with NAT: Operation not supported",
                                      "modprobe nf_tables"});
    CHECK(with(ENOENT).remedy == "modprobe -a nft_ct nft_chain_nat nft_nat nft_masq");
    CHECK(with(EINVAL).remedy == "boot Linux 5.12 or later: older ones have no table owners");
}

TEST_CASE("a firewall that drops what guests send is named, with the way through it") {
    auto host = able();
    host.firewall.obstacle = netns::Obstacle{"ip", "filter", "forward", 0};
    CHECK(find("firewall", host) ==
          Finding{"firewall", Status::warning,
                  "the host's firewall drops what the guest sends: ip filter forward, policy drop: "
                  "nat guests have pasta for it",
                  "nft 'insert rule ip filter forward iifname \"qvm-*\" accept; insert rule ip "
                  "filter forward oifname \"qvm-*\" ct state established,related accept'"});
    host.namespaces.privileged = false;
    CHECK(find("firewall", host).status == Status::ok);
}

TEST_CASE("a firewall that was not tried is not said to be fine") {
    auto host = able();
    host.firewall.unknown = "the host has no route to the outside";
    CHECK(find("firewall", host).status == Status::warning);
    CHECK(find("firewall", host).found == "cannot tell: the host has no route to the outside");
}

TEST_CASE("directories, disk space and descriptors") {
    auto host = able();
    host.directories[0].error = EACCES;
    CHECK(find("run-directory", host) ==
          Finding{"run-directory", Status::missing, "/run/qvm: Permission denied",
                  "set QVM_RUN_DIR to a directory that you may write to"});
    host.cache_free = gib - 1;
    CHECK(find("disk-space", host) ==
          Finding{"disk-space", Status::warning,
                  "1023 MiB free in the cache directory, where guests' writes go",
                  "set QVM_CACHE_DIR to a directory on a larger file system"});
    host.descriptor_limit = 1024;
    CHECK(find("descriptors", host) ==
          Finding{"descriptors", Status::warning, "at most 1024",
                  "ulimit -Hn 4096 as root, or LimitNOFILE=4096 in a unit"});
    host.descriptor_limit = ~std::uint64_t{0};
    CHECK(find("descriptors", host).found == "no limit");
}

TEST_CASE("the table is aligned, and coloured only if asked") {
    const std::vector<Finding> findings{{"qemu", Status::ok, "7.2.22"},
                                        {"vhost-net", Status::warning, "no", "modprobe vhost_net"},
                                        {"tun", Status::missing, "no", "modprobe tun"}};
    CHECK(to_text(findings, false) ==
          "ok       qemu       7.2.22\n"
          "warning  vhost-net  no\n"
          "         -> modprobe vhost_net\n"
          "missing  tun        no\n"
          "         -> modprobe tun\n");
    CHECK(to_text(findings, true) ==
          "\x1b[32mok     \x1b[0m  qemu       7.2.22\n"
          "\x1b[33mwarning\x1b[0m  vhost-net  no\n"
          "         -> modprobe vhost_net\n"
          "\x1b[31mmissing\x1b[0m  tun        no\n"
          "         -> modprobe tun\n");
    CHECK(exit_status(findings) == 1);
}

TEST_CASE("JSON: an array of findings, each with all four members") {
    const auto value = boost::json::parse(to_json(
        {{"tun", Status::missing, "no \"tun\"", "modprobe tun"}, {"kvm", Status::ok, "yes"}}));
    const boost::json::value expected{
        {{"name", "tun"},
         {"status", "missing"},
         {"found", "no \"tun\""},
         {"remedy", "modprobe tun"}},
        {{"name", "kvm"}, {"status", "ok"}, {"found", "yes"}, {"remedy", ""}}};
    CHECK(value == expected);
}

TEST_CASE("firmware, a TPM and other architectures are what one can do without") {
    CHECK(find("uefi", able()) ==
          Finding{"uefi", Status::ok, "/firmware/OVMF.fd, /firmware/OVMF.secboot.fd"});
    auto host = able();
    host.uefi.secure_path.clear();
    CHECK(find("uefi", host) == Finding{"uefi", Status::warning,
                                        "/firmware/OVMF.fd, and none for --secure-boot",
                                        "apt-get install ovmf"});
    host.uefi_aarch64 = {};
    CHECK(find("uefi-aarch64", host) == Finding{"uefi-aarch64", Status::warning,
                                                "it is not installed",
                                                "apt-get install qemu-efi-aarch64"});
    host.uefi_aarch64.unknown = "read 'x.json': is not a JSON object";
    CHECK(find("uefi-aarch64", host).found == "cannot tell: read 'x.json': is not a JSON object");
    host.qemu_aarch64 = {};
    CHECK(find("qemu-aarch64", host).remedy == "apt-get install qemu-system-arm");
    host.swtpm = {};
    CHECK(find("swtpm", host).remedy == "apt-get install swtpm");
    CHECK(exit_status(judge(host)) == 0);
}
