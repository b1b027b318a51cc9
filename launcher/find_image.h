#pragma once

#include <optional>
#include <string>

#include "launcher/directories.h"
#include "launcher/image_store.h"
#include "launcher/options.h"

namespace qvm {

/// How an image is looked for that a user has named.
struct FindImage {
    bool pull = true;    ///< one that is not there, and that the catalogue has
    bool quiet = false;  ///< without a word on stderr
};

/// What a user means by IMAGE: a file, where there is one of that path; else an image of the store
/// by its name, or by another that the catalogue has for it; else one that is pulled. Then vm.image
/// is its file, and vm.image_name what the user said. Nobody removes it until the result is closed.
/// Throws Failure.
UniqueFd find_image(VmOptions& vm, const Directories& directories, FindImage how);

/// The same of one that has to be in the store: its name there. Throws Failure.
std::string name_in_store(const ImageStore& store, const std::string& name);

/// What machine an image of the store is for, where that is what vm.image means and it is known.
/// Throws Failure.
std::optional<Architecture> known_architecture(const VmOptions& vm, const Directories& directories);

}  // namespace qvm
