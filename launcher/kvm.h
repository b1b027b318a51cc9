#pragma once

#include <string>

namespace qvm {

/// What /dev/kvm is good for.
struct KvmFacts {
    int open_error = 0;         ///< errno values
    int vm_error = 0;           ///< of making a VM
    std::string cpu_flag = {};  ///< vmx (Intel), svm (AMD), or neither: in /proc/cpuinfo
    /// Whether a VM's CPU can have IA32_ARCH_CAPABILITIES as this one has: some hosts that are
    /// guests themselves show it and refuse it, on which QEMU's "-cpu host" aborts.
    bool sets_arch_capabilities = true;
};

/// Reads them. Where the device opens and the CPU virtualises, that takes a VM with a CPU, made for
/// a moment (Linux' Documentation/virt/kvm/api.rst), which some sandboxes refuse.
KvmFacts read_kvm();

/// What /proc/cpuinfo says of the first CPU, which stands for all, and does not change while the
/// host runs, as its clock does. Pure.
std::string cpu_identity(const std::string& cpuinfo);

/// What decides which features KVM gives a guest's CPU: the host's CPU and its kernel, as text that
/// is another where one of them is.
std::string cpu_of_host();

}  // namespace qvm
