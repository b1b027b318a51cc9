#include "launcher/machine.h"

namespace qvm {

namespace {

constexpr Machine pc{.qemu = "qemu-system-x86_64",
                     .package = "qemu-system-x86",
                     .type = "q35",
                     .versions = "pc-q35-",
                     .options = "vmport=off",
                     .cpu = "max",
                     .console = "ttyS0",
                     .tpm = "tpm-crb",
                     .firmware_package = "ovmf",
                     .is_pc = true};
// QEMU computes authentication codes of pointers as the architecture proposes it, which takes more
// time than all else of a boot, or in a way of its own.
constexpr Machine virt{.qemu = "qemu-system-aarch64",
                       .package = "qemu-system-arm",
                       .type = "virt",
                       .versions = "virt-",
                       .options = "gic-version=max",
                       .cpu = "max,pauth-impdef=on",
                       .console = "ttyAMA0",
                       .tpm = "tpm-tis-device",
                       .firmware_package = "qemu-efi-aarch64",
                       .is_pc = false};

}  // namespace

const Machine& machine_of(Architecture architecture) {
    return architecture == Architecture::aarch64 ? virt : pc;
}

Architecture host_architecture() {
#if defined(__aarch64__)
    return Architecture::aarch64;
#else
    return Architecture::x86_64;
#endif
}

}  // namespace qvm
