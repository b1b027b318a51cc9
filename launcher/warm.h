#pragma once

#include <functional>
#include <string>

#include "launcher/options.h"

namespace qvm {

/// What a machine rests on beside the files that its options name.
struct WarmFacts {
    std::string qvm;         ///< this program's version
    std::string qemu;        ///< what its program is: path, size, modification
    std::string firmware{};  ///< the same of UEFI's code; empty without
    std::string public_key;  ///< qvm's own, which the guest has by cloud-init; may be empty
};

/// The name of the snapshot that a run with these options begins with: the SHA-256 of all that the
/// machine is made of, in hexadecimal. Disks and kernels count by path, size and modification, what
/// cloud-init is given by its contents. Throws Failure for a file that cannot be read.
std::string warm_key(const RunOptions& options, const WarmFacts& facts);

/// The options for the run whose machine is saved: nothing that is of one run alone. Pure.
RunOptions warm_boot(const RunOptions& options, const std::string& name);

/// That such a machine can be saved. Throws Failure. Pure.
void check_warm(const VmOptions& boot);

/// A run that begins with the machine that an earlier one has saved; where there is none it is
/// booted first, and saved when it is ready. `run` runs a VM and returns its exit status; it is
/// called in a child of this process, too, which must have one thread. Returns qvm's exit status.
/// Throws Failure.
int run_warm(RunOptions options, const std::function<int(const RunOptions&)>& run);

}  // namespace qvm
