#include "launcher/kvm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <sstream>

#include "launcher/directories.h"
#include "netns/unique_fd.h"

namespace qvm {

namespace {

/// kvm_msrs with one entry, and the commands that take it: as C++ reads linux/kvm.h, a flexible
/// array takes room, and the size is part of the number.
struct MsrsHeader {
    __u32 count = 1;
    __u32 padding = 0;
};
struct OneMsr {
    MsrsHeader header;
    kvm_msr_entry entry{};
};
constexpr auto get_msrs = _IOWR(KVMIO, 0x88, MsrsHeader);  // KVM_GET_MSRS
constexpr auto set_msrs = _IOW(KVMIO, 0x89, MsrsHeader);   // KVM_SET_MSRS
constexpr __u32 arch_capabilities = 0x10a;

std::string cpu_virtualisation() {
    std::ifstream file{"/proc/cpuinfo"};
    for (std::string line; std::getline(file, line);) {
        if (!line.starts_with("flags")) continue;
        for (const std::string flag : {"vmx", "svm"})
            if ((line + ' ').find(' ' + flag + ' ') != std::string::npos) return flag;
        break;
    }
    return {};
}

/// As QEMU sets it: what the host's KVM says that it supports.
bool sets_arch_capabilities(int kvm, int vm) {
    OneMsr msr;
    msr.entry.index = arch_capabilities;
    if (::ioctl(kvm, get_msrs, &msr) != 1) return true;  // there is none
    const UniqueFd cpu{::ioctl(vm, KVM_CREATE_VCPU, 0)};
    return !cpu || ::ioctl(cpu.get(), set_msrs, &msr) == 1;
}

void try_kvm(int kvm, KvmFacts& facts) {
    errno = 0;
    if (::ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        facts.vm_error = errno != 0 ? errno : ENOSYS;
        return;
    }
    const UniqueFd vm{::ioctl(kvm, KVM_CREATE_VM, 0)};
    if (vm)
        facts.sets_arch_capabilities = sets_arch_capabilities(kvm, vm.get());
    else
        facts.vm_error = errno;
}

}  // namespace

KvmFacts read_kvm() {
    KvmFacts facts{.cpu_flag = cpu_virtualisation()};
    const UniqueFd kvm{::open("/dev/kvm", O_RDWR | O_CLOEXEC)};
    if (!kvm) facts.open_error = errno;
    if (kvm && !facts.cpu_flag.empty()) try_kvm(kvm.get(), facts);
    return facts;
}

std::string cpu_identity(const std::string& cpuinfo) {
    constexpr std::array keys{"vendor_id", "cpu family", "model", "stepping", "microcode", "flags"};
    std::string text;
    std::istringstream in{cpuinfo};
    for (std::string line; std::getline(in, line) && !line.empty();)
        if (std::any_of(keys.begin(), keys.end(), [&](auto* key) { return line.starts_with(key); }))
            text += line + '\n';
    return text;
}

std::string cpu_of_host() {
    utsname kernel{};
    ::uname(&kernel);
    return fmt::format("{}{} {}", cpu_identity(read_file("/proc/cpuinfo").value_or("")),
                       kernel.release, kernel.version);
}

}  // namespace qvm
