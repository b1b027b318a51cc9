#pragma once

#include <functional>
#include <optional>
#include <string>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/options.h"
#include "launcher/snapshot.h"

namespace qvm {

/// What a machine rests on beside the files that its options name.
struct WarmFacts {
    std::string qvm;         ///< this program's version
    std::string qemu;        ///< what its program is: path, size, modification
    std::string firmware{};  ///< the same of UEFI's code; empty without
    std::string cpu;         ///< QEMU's -cpu, and what the host makes of it
    std::string public_key;  ///< qvm's own, which the guest has by cloud-init; may be empty
};

/// The name of the snapshot that a run with these options begins with: the SHA-256 of all that the
/// machine is made of, in hexadecimal. Disks and kernels count by path, size and modification, what
/// cloud-init is given by its contents. Throws Failure for a file that cannot be read.
std::string warm_key(const RunOptions& options, const WarmFacts& facts);

/// The options for the run whose machine is saved: nothing that is of one run alone. Pure.
RunOptions warm_boot(const RunOptions& options, const std::string& name);

/// The machine that such a run has saved. Throws Failure where it cannot be.
VmOptions warm_machine(const RunOptions& options);

/// What a run with --warm begins with.
struct WarmStart {
    RunOptions options;                  ///< of the run that goes on from there
    std::optional<Snapshot> snapshot{};  ///< nothing where the machine did not boot,
    int exit_status = status::failed;    ///< which has said why
};

/// Runs a VM with these options to its end, and tells when it is ready. Its exit status.
using Boot = std::function<int(const RunOptions& options, const std::function<void()>& ready)>;

/// Takes hold of the machine that a run with these options begins with. Where none was saved, or
/// what was is not as it was, it is booted and saved: `boot` is called in a child of this process,
/// which must have one thread, and the VM ends with this process at the latest. Throws Failure.
WarmStart warm_start(RunOptions options, const Boot& boot);

/// Removes what runs that were killed left of machines that they were about to save; how many.
/// Throws Failure.
std::size_t sweep_warm(const Directories& directories);

}  // namespace qvm
