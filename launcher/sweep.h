#pragma once

#include <string>
#include <vector>

#include "launcher/directories.h"
#include "launcher/options.h"

namespace qvm {

/// What a sweep removed.
struct Swept {
    std::vector<std::string> vms;     ///< names of VMs whose supervisor died
    std::vector<std::string> others;  ///< "group 'lab'", "half made definitions"
};

/// Removes what VMs whose supervisor is dead left behind, and puts back what they changed of the
/// host. A living one's things are locked, and stay; what cannot be removed stays for the next.
Swept sweep(const Directories& directories);

/// qvm gc: the same, and says what it was. Its exit status.
int gc(const GcOptions& options);

}  // namespace qvm
