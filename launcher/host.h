#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "launcher/failure.h"
#include "launcher/kvm.h"
#include "launcher/options.h"
#include "netns/plan.h"

namespace qvm {

/// What this host can do for QEMU; read once.
struct HostFacts {
    std::uint64_t memory_mib = 0;
    std::vector<Architecture> has_qemu = {};  ///< for guests of these
    bool has_dnsmasq = false;
    bool has_qemu_img = false;
    bool has_virtiofsd = false;
    bool has_pasta = false;
    bool has_swtpm = false;
    bool privileged = false;  ///< CAP_SYS_ADMIN and CAP_NET_ADMIN
    int tun_error = 0;        ///< errno value of why /dev/net/tun may not be opened; 0 when it may
};
HostFacts read_host_facts();

/// Of a program that is not installed, and the Debian package that has it.
Failure missing_program(const std::string& program, const std::string& package);

/// virtiofsd's path, which is not in PATH; nothing where it is not installed.
std::optional<std::string> find_virtiofsd();

/// Opens a device for reading and writing: 0, or the errno value of the refusal.
int open_error(const char* device);

/// How many processes the kernel has killed since boot for want of memory, of the host's or of some
/// cgroup's (oom_kill in /proc/vmstat, proc_vmstat(5)); 0 where it does not say.
std::uint64_t read_oom_kills();

/// Whether we have all of these capabilities(7), in whatever user namespace we are.
bool has_capabilities(std::initializer_list<unsigned> capabilities);
/// CAP_SYS_ADMIN and CAP_NET_ADMIN.
bool has_capabilities();

/// The accelerator that a VM gets, and why it is not KVM where one would expect it.
struct AccelChoice {
    bool kvm = false;
    std::string cpu = "max";  ///< QEMU's -cpu
    std::string why_not_kvm = {};
};

/// Pure. KVM only for guests of the `host`'s architecture, and where /dev/kvm opens and the CPU
/// shows vmx or svm: a /dev/kvm that opens and then hangs stock kernels exists. The CPU is the
/// host's, less what the host's KVM shows and then refuses. Throws Failure where KVM was asked for
/// and cannot be had.
AccelChoice choose_accel(Accel wanted, Architecture guest, Architecture host, const KvmFacts& kvm);

/// Pure. How a VM's namespace is joined to the outside.
netns::UplinkKind choose_uplink(Uplink wanted, bool privileged);

/// Pure. Throws Failure, with a hint where there is a remedy, for what this host cannot do. A dry
/// run creates nothing, so it needs no privilege.
void check_host(const VmOptions& options, const HostFacts& host, bool dry_run);

}  // namespace qvm
