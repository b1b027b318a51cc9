#pragma once

#include "launcher/values.h"

/// What a guest's architecture decides.
namespace qvm {

/// The machine that a guest of one architecture has, in QEMU's words.
struct Machine {
    const char* qemu;              ///< the program
    const char* package;           ///< Debian's, with that program
    const char* type;              ///< without a version
    const char* versions;          ///< what the types with a version begin with
    const char* options;           ///< of that type
    const char* cpu;               ///< without KVM: all that QEMU can do
    const char* console;           ///< as the guest's kernel names it
    const char* tpm;               ///< the device
    const char* firmware_package;  ///< Debian's, with UEFI
    bool is_pc;                    ///< which has a BIOS, and a port for its log
};
/// Pure.
const Machine& machine_of(Architecture architecture);

/// This host's own.
Architecture host_architecture();

}  // namespace qvm
