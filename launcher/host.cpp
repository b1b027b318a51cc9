#include "launcher/host.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/machine.h"
#include "launcher/process.h"
#include "netns/unique_fd.h"

namespace qvm {

namespace {

std::uint64_t memory_of_host() {
    struct sysinfo info {};
    ::sysinfo(&info);
    return info.totalram * info.mem_unit / (1024 * 1024);
}

void check_programs(const VmOptions& options, const HostFacts& host) {
    const auto architecture = options.arch.value_or(host_architecture());
    const auto& machine = machine_of(architecture);
    if (std::find(host.has_qemu.begin(), host.has_qemu.end(), architecture) == host.has_qemu.end())
        throw missing_program(machine.qemu, machine.package);
    if (options.image && !host.has_qemu_img) throw missing_program("qemu-img", "qemu-utils");
    if (!options.volumes.empty() && !host.has_virtiofsd)
        throw missing_program("virtiofsd", "qemu-system-common");
    if (options.tpm && !host.has_swtpm) throw missing_program("swtpm", "swtpm");
    if (has_namespace(options.net_or_default().mode) && !host.has_dnsmasq)
        throw missing_program("dnsmasq", "dnsmasq-base");
    const bool nat = options.net_or_default().mode == NetOption::Mode::nat;
    const auto uplink = choose_uplink(options.uplink, host.privileged);
    if (nat && uplink == netns::UplinkKind::pasta && !host.has_pasta)
        throw missing_program("pasta", "passt");
}

}  // namespace

Failure missing_program(const std::string& program, const std::string& package) {
    return Failure(fmt::format("find '{}': it is not installed", program),
                   "apt-get install " + package);
}

std::optional<std::string> find_virtiofsd() {
    // Debian 12's is QEMU's; later there is one in Rust, with a package of its own.
    for (const char* path : {"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"})
        if (::access(path, X_OK) == 0) return path;
    return std::nullopt;
}

int open_error(const char* device) {
    return UniqueFd{::open(device, O_RDWR | O_CLOEXEC)} ? 0 : errno;
}

std::uint64_t read_oom_kills() {
    std::ifstream file{"/proc/vmstat"};
    std::string key;
    std::uint64_t value = 0;
    while (file >> key >> value)
        if (key == "oom_kill") return value;
    return 0;
}

bool has_capabilities(std::initializer_list<unsigned> capabilities) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> data{};
    if (::syscall(SYS_capget, &header, data.data()) != 0) return false;
    return std::all_of(capabilities.begin(), capabilities.end(), [&](unsigned capability) {
        return (data[capability / 32].effective & (1U << (capability % 32))) != 0;
    });
}

bool has_capabilities() {
    return has_capabilities({CAP_SYS_ADMIN, CAP_NET_ADMIN});
}

HostFacts read_host_facts() {
    HostFacts facts;
    facts.memory_mib = memory_of_host();
    for (const auto architecture : {Architecture::x86_64, Architecture::aarch64})
        if (find_program(machine_of(architecture).qemu)) facts.has_qemu.push_back(architecture);
    facts.has_dnsmasq = find_program("dnsmasq").has_value();
    facts.has_qemu_img = find_program("qemu-img").has_value();
    facts.has_virtiofsd = find_virtiofsd().has_value();
    facts.has_pasta = find_program("pasta").has_value();
    facts.has_swtpm = find_program("swtpm").has_value();
    facts.privileged = has_capabilities();
    // Closing one takes the lock of all network changes (RTNL), which others may queue for.
    if (::faccessat(AT_FDCWD, "/dev/net/tun", R_OK | W_OK, AT_EACCESS) != 0)
        facts.tun_error = errno;
    return facts;
}

AccelChoice choose_accel(Accel wanted, Architecture guest, Architecture host, const KvmFacts& kvm) {
    const std::string cpu = machine_of(guest).cpu;
    if (wanted == Accel::tcg) return {.cpu = cpu};
    const auto reason = [](int error) { return std::generic_category().message(error); };
    std::string why;
    if (guest != host)
        why = fmt::format("the guest is {}, the host {}", to_string(guest), to_string(host));
    else if (kvm.open_error != 0)
        why = "/dev/kvm: " + reason(kvm.open_error);
    else if (kvm.cpu_flag.empty())
        why = "the CPU shows neither vmx nor svm";
    else if (kvm.vm_error != 0)
        why = "/dev/kvm makes no VM: " + reason(kvm.vm_error);
    if (why.empty())
        return {.kvm = true,
                .cpu = kvm.sets_arch_capabilities ? "host" : "host,-arch-capabilities"};
    if (wanted == Accel::kvm)
        throw Failure("--accel kvm: " + why, "--accel tcg runs without KVM, 10 to 30 times slower");
    return {.cpu = cpu, .why_not_kvm = why};
}

netns::UplinkKind choose_uplink(Uplink wanted, bool privileged) {
    if (wanted == Uplink::automatic)
        return privileged ? netns::UplinkKind::veth : netns::UplinkKind::pasta;
    return wanted == Uplink::veth ? netns::UplinkKind::veth : netns::UplinkKind::pasta;
}

void check_host(const VmOptions& options, const HostFacts& host, bool dry_run) {
    check_programs(options, host);
    if (options.memory_mib > host.memory_mib)
        throw Failure(fmt::format("--memory: {} MiB is more than this host's {} MiB",
                                  options.memory_mib, host.memory_mib));
    const auto mode = options.net_or_default().mode;
    if (dry_run || (!has_namespace(mode) && mode != NetOption::Mode::bridge)) return;
    if (!host.privileged && mode == NetOption::Mode::bridge)
        throw Failure("--net bridge: needs root: the bridge is the host's",
                      "--net nat needs no root");
    if (!host.privileged && mode == NetOption::Mode::flat)
        throw Failure("--net flat: needs root: it puts the host on the guests' Ethernet",
                      "--net nat needs no root");
    if (!host.privileged && options.uplink == Uplink::veth)
        throw Failure("--uplink veth: needs root: its other end is the host's",
                      "--uplink pasta needs no root");
    if (host.tun_error != 0)
        throw Failure("open '/dev/net/tun': " + std::generic_category().message(host.tun_error),
                      host.tun_error == EACCES ? "chmod 0666 /dev/net/tun" : "modprobe tun");
}

}  // namespace qvm
