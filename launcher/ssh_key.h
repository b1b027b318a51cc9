#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "launcher/directories.h"

namespace qvm {

/// qvm's own key pair for its guests, one for a data directory; see own_public_key().
std::filesystem::path own_key_file(const Directories& directories);

/// The public key of qvm's own pair, with which `qvm ssh` logs in. Where there is none it is made
/// if `make`, by ssh-keygen; nothing where that is not installed. Throws Failure.
std::optional<std::string> own_public_key(const Directories& directories, bool make);

}  // namespace qvm
