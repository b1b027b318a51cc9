#include "launcher/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <sstream>
#include <system_error>

#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/firewall.h"
#include "launcher/machine.h"
#include "launcher/output.h"

namespace qvm {

namespace {

using Status = Finding::Status;

constexpr std::uint64_t mib = 1024 * 1024;
constexpr std::uint64_t least_cache_free = 1024 * mib;
constexpr std::uint64_t least_descriptors = 4096;
constexpr int something_missing = 1;

std::string reason(int error) {
    return std::generic_category().message(error);
}

// --- programs -----------------------------------------------------------------------------------

std::string describe_program(const ProgramFacts& program) {
    if (program.version.empty()) return program.path;
    return fmt::format("{} ({})", program.version, program.path);
}

Finding judge_program(const std::string& name, const ProgramFacts& program,
                      const std::string& package, Status without = Status::missing) {
    if (!program.path.empty()) return {name, Status::ok, describe_program(program)};
    return {name, without, "it is not installed", "apt-get install " + package};
}

bool older_than_7_2(const std::string& version) {
    int major = 0, minor = 0;
    char dot = 0;
    std::istringstream{version} >> major >> dot >> minor;
    return major < 7 || (major == 7 && minor < 2);
}

Finding judge_qemu(const ProgramFacts& qemu) {
    auto finding = judge_program("qemu", qemu, "qemu-system-x86");
    if (finding.status != Status::ok) return finding;
    if (qemu.version.empty())
        return {"qemu", Status::missing, qemu.path + " does not tell its version",
                "apt-get install --reinstall qemu-system-x86"};
    if (older_than_7_2(qemu.version))
        return {"qemu", Status::missing, finding.found + " is older than 7.2",
                "install QEMU 7.2 or later, as Debian 12 has it"};
    return finding;
}

Finding judge_firmware(const std::string& name, const FirmwareFacts& facts,
                       const std::string& package) {
    if (!facts.unknown.empty())
        return {name, Status::warning, "cannot tell: " + facts.unknown, "move that file away"};
    if (facts.path.empty())
        return {name, Status::warning, "it is not installed", "apt-get install " + package};
    if (facts.secure_path.empty())
        return {name, Status::warning, facts.path + ", and none for --secure-boot",
                "apt-get install " + package};
    return {name, Status::ok, fmt::format("{}, {}", facts.path, facts.secure_path)};
}

// --- devices ------------------------------------------------------------------------------------

/// The driver is not there; its node may be all the same.
bool is_absent(int error) {
    return error == ENOENT || error == ENXIO || error == ENODEV;
}

std::string device_remedy(const std::string& device, int error, const std::string& module,
                          const std::string& permission) {
    if (is_absent(error)) return "modprobe " + module;
    if (error == EACCES) return permission;
    return fmt::format("let this container have it, such as docker run --device={}", device);
}

Finding judge_device(const std::string& name, const std::string& device, int error,
                     const std::string& module, Status without) {
    if (error == 0) return {name, Status::ok, device + " opens"};
    return {name, without, fmt::format("{}: {}", device, reason(error)),
            device_remedy(device, error, module, "chmod 0666 " + device)};
}

const char* const enable_virtualisation =
    "enable VT-x or AMD-V in the firmware, or nested virtualisation where this host is a guest";

/// What keeps guests from KVM, and its remedy; nothing where they can have it.
struct Obstacle {
    std::string what;
    std::string remedy;
};

Obstacle obstacle_of_kvm(const KvmFacts& kvm, const std::string& group) {
    const auto denied = "/dev/kvm: " + reason(kvm.open_error);
    if (kvm.cpu_flag.empty())  // then nothing else helps
        return {(kvm.open_error == 0 ? "/dev/kvm opens, but" : denied + ", and") +
                    std::string{" the CPU shows neither vmx nor svm"},
                enable_virtualisation};
    const auto module = kvm.cpu_flag == "svm" ? "kvm_amd" : "kvm_intel";
    const auto permission = group.empty()
                                ? "chmod 0666 /dev/kvm"
                                : fmt::format("usermod -aG {} $USER, then log in again", group);
    if (kvm.open_error != 0)
        return {denied, device_remedy("/dev/kvm", kvm.open_error, module, permission)};
    if (kvm.vm_error == EBUSY)
        return {"/dev/kvm makes no VM: " + reason(EBUSY), "end the other hypervisor on this host"};
    if (kvm.vm_error != 0)
        return {"/dev/kvm makes no VM: " + reason(kvm.vm_error), enable_virtualisation};
    return {};
}

Finding judge_kvm(const KvmFacts& kvm, const std::string& group) {
    const auto obstacle = obstacle_of_kvm(kvm, group);
    if (obstacle.what.empty())
        return {"kvm", Status::ok, fmt::format("/dev/kvm makes VMs ({})", kvm.cpu_flag)};
    return {"kvm", Status::warning, obstacle.what + ": QEMU's TCG runs guests, much slower",
            obstacle.remedy};
}

// --- namespaces ---------------------------------------------------------------------------------

/// A sysctl that can forbid namespaces, and a value that does not.
struct Forbidding {
    const char* sysctl;
    const char* value;
    const char* allowing;
    bool for_user_namespaces;
};
constexpr Forbidding forbiddings[] = {
    {"user.max_net_namespaces", "0", "10000", false},
    {"kernel.unprivileged_userns_clone", "0", "1", true},
    {"user.max_user_namespaces", "0", "10000", true},
    {"kernel.apparmor_restrict_unprivileged_userns", "1", "0", true},
};

const Forbidding* find_forbidding(const NamespaceFacts& facts) {
    for (const auto& candidate : forbiddings) {
        const auto found = facts.sysctls.find(candidate.sysctl);
        if (candidate.for_user_namespaces && facts.privileged) continue;
        if (found != facts.sysctls.end() && found->second == candidate.value) return &candidate;
    }
    return nullptr;
}

/// AppArmor lets a user namespace be made in which nothing may be done.
int namespace_error(const NamespaceFacts& facts) {
    return facts.nft_error == EPERM ? EPERM : facts.error;
}

Finding judge_namespaces(const NamespaceFacts& facts) {
    const std::string name = "namespaces";
    const int error = namespace_error(facts);
    if (error == 0)
        return {name, Status::ok,
                facts.privileged ? "may be made" : "may be made, in a user namespace"};
    if (const auto* forbidding = find_forbidding(facts))
        return {name, Status::missing,
                fmt::format("{} ({} = {})", reason(error), forbidding->sysctl, forbidding->value),
                fmt::format("sysctl -w {}={}", forbidding->sysctl, forbidding->allowing)};
    return {name, Status::missing, "create network namespace: " + reason(error),
            facts.privileged ? "let this container make them, such as docker run --privileged"
                             : "run qvm as root"};
}

std::string nft_remedy(int error) {
    if (error == EINVAL) return "boot Linux 5.12 or later: older ones have no table owners";
    if (error == ENOENT) return "modprobe -a nft_ct nft_chain_nat nft_nat nft_masq";
    return "modprobe nf_tables";
}

Finding judge_nft(const NamespaceFacts& facts) {
    const std::string name = "nftables";
    if (namespace_error(facts) != 0)
        return {name, Status::warning, "cannot tell without a network namespace",
                judge_namespaces(facts).remedy};
    if (facts.nft_error == 0) return {name, Status::ok, "tables with an owner"};
    return {name, Status::missing, "create a table with NAT: " + reason(facts.nft_error),
            nft_remedy(facts.nft_error)};
}

// --- the host's firewall ------------------------------------------------------------------------

Finding judge_firewall(const FirewallFacts& facts, bool privileged) {
    const std::string name = "firewall";
    if (!privileged) return {name, Status::ok, "of no matter without root: nothing is forwarded"};
    if (!facts.unknown.empty())
        return {name, Status::warning, "cannot tell: " + facts.unknown,
                "run qvm as the host's root, where that reaches the outside"};
    if (!facts.obstacle) return {name, Status::ok, "lets guests' packets pass"};
    return {name, Status::warning,
            describe(*facts.obstacle, facts.chain) + ": nat guests have pasta for it",
            remedy(*facts.obstacle, facts.chain)};
}

// --- directories and limits ---------------------------------------------------------------------

Finding judge_directory(const DirectoryFacts& directory) {
    const auto name = directory.name + "-directory";
    if (directory.error == 0) return {name, Status::ok, directory.path.string()};
    return {name, Status::missing,
            fmt::format("{}: {}", directory.path.string(), reason(directory.error)),
            fmt::format("set {} to a directory that you may write to", directory.variable)};
}

Finding judge_space(std::uint64_t bytes) {
    const auto found = fmt::format("{} MiB free in the cache directory", bytes / mib);
    if (bytes >= least_cache_free) return {"disk-space", Status::ok, found};
    return {"disk-space", Status::warning, found + ", where guests' writes go",
            "set QVM_CACHE_DIR to a directory on a larger file system"};
}

Finding judge_descriptors(std::uint64_t limit) {
    const auto found = limit == ~std::uint64_t{0} ? "no limit" : fmt::format("at most {}", limit);
    if (limit >= least_descriptors) return {"descriptors", Status::ok, found};
    return {"descriptors", Status::warning, found,
            fmt::format("ulimit -Hn {} as root, or LimitNOFILE={} in a unit", least_descriptors,
                        least_descriptors)};
}

// --- output -------------------------------------------------------------------------------------

struct Shown {
    const char* word;
    const char* colour;  ///< SGR parameter of ECMA-48
};

Shown shown(Status status) {
    switch (status) {
        case Status::ok:
            return {"ok", "32"};
        case Status::warning:
            return {"warning", "33"};
        case Status::missing:
            break;
    }
    return {"missing", "31"};
}

}  // namespace

std::vector<Finding> judge(const DoctorFacts& facts) {
    const auto& pc = machine_of(Architecture::x86_64);
    const auto& virt = machine_of(Architecture::aarch64);
    std::vector<Finding> findings{
        judge_qemu(facts.qemu),
        judge_program("qemu-img", facts.qemu_img, "qemu-utils"),
        judge_kvm(facts.kvm, facts.kvm_group),
        judge_device("tun", "/dev/net/tun", facts.tun_error, "tun", Status::missing),
        judge_device("vhost-net", "/dev/vhost-net", facts.vhost_error, "vhost_net",
                     Status::warning),
        judge_namespaces(facts.namespaces),
        judge_nft(facts.namespaces),
        judge_firewall(facts.firewall, facts.namespaces.privileged),
        judge_program("dnsmasq", facts.dnsmasq, "dnsmasq-base"),
        judge_program("pasta", facts.pasta, "passt", Status::warning),
        judge_program("ssh", facts.ssh, "openssh-client", Status::warning),
        judge_program("virtiofsd", {.path = facts.virtiofsd}, "qemu-system-common",
                      Status::warning),
        judge_program("libcurl", {.path = facts.libcurl}, "libcurl4", Status::warning),
        judge_program("gpgv", facts.gpgv, "gpgv", Status::warning),
        judge_program("swtpm", facts.swtpm, "swtpm", Status::warning),
        judge_firmware("uefi", facts.uefi, pc.firmware_package),
        judge_program("qemu-aarch64", facts.qemu_aarch64, virt.package, Status::warning),
        judge_firmware("uefi-aarch64", facts.uefi_aarch64, virt.firmware_package),
    };
    std::ranges::transform(facts.directories, std::back_inserter(findings), judge_directory);
    findings.push_back(judge_space(facts.cache_free));
    findings.push_back(judge_descriptors(facts.descriptor_limit));
    return findings;
}

int exit_status(const std::vector<Finding>& findings) {
    const auto is_missing = [](const Finding& finding) {
        return finding.status == Status::missing;
    };
    return std::ranges::any_of(findings, is_missing) ? something_missing : status::ok;
}

std::string to_text(const std::vector<Finding>& findings, bool colour) {
    std::size_t width = 0;
    for (const auto& finding : findings) width = std::max(width, finding.name.size());
    std::string text;
    for (const auto& finding : findings) {
        const auto [word, sgr] = shown(finding.status);
        const auto padded = fmt::format("{:<7}", word);
        text += colour ? fmt::format("\x1b[{}m{}\x1b[0m", sgr, padded) : padded;
        text += fmt::format("  {:<{}}  {}\n", finding.name, width, finding.found);
        if (!finding.remedy.empty()) text += fmt::format("         -> {}\n", finding.remedy);
    }
    return text;
}

std::string to_json(const std::vector<Finding>& findings) {
    boost::json::array array;
    for (const auto& finding : findings)
        array.push_back({{"name", finding.name},
                         {"status", shown(finding.status).word},
                         {"found", finding.found},
                         {"remedy", finding.remedy}});
    return boost::json::serialize(array) + "\n";
}

int doctor(const DoctorOptions& options) {
    const auto findings = judge(read_doctor_facts());
    print(options.json ? to_json(findings) : to_text(findings, use_colour()));
    return exit_status(findings);
}

}  // namespace qvm
