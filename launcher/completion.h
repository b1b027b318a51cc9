#pragma once

#include <string>

#include "launcher/options.h"

namespace qvm {

/// The script that completes the command line `qvm` in a shell: its commands and options, the names
/// of VMs and networks that there are when it is asked, files, and what an option may be. Pure.
std::string completion_script(CompletionOptions::Shell shell, const CommandShape& qvm);

}  // namespace qvm
