#pragma once

#include <optional>
#include <string>

#include "images/catalogue.h"
#include "launcher/directories.h"
#include "launcher/image_store.h"
#include "launcher/options.h"

namespace qvm {

/// What a user means by IMAGE: a file, where there is one of that path; else an image of the store
/// by its name, or by another that the catalogue has for it. Then vm.image is its file,
/// vm.image_name what the user said, and vm.arch what machine it is for, where that is known and
/// the user did not say. That it `is_used` is noted. Nobody removes it until the result is closed.
/// Throws Failure.
UniqueFd find_image(VmOptions& vm, const Directories& directories, bool is_used);

/// What has to be pulled before find_image() has it; nothing where it is here, or is a file. Throws
/// Failure where there is none.
std::optional<images::CatalogueEntry> missing_image(const VmOptions& vm,
                                                    const Directories& directories);

/// The same of one that has to be in the store: its name there, which may be one that cannot be
/// read. Throws Failure.
std::string name_in_store(const ImageStore& store, const std::string& name);

/// What "sha256:HEX" means, the digest of an image or what it begins with; nothing for any other
/// text. Throws Failure where there is none, or are several.
std::optional<std::string> digest_in_store(const ImageStore& store, const std::string& text);

/// An image of the store.
struct StoredImage {
    std::string name;    ///< empty where it has lost it, ...
    ImageRecord record;  ///< ... and then the digest is all that is known
};

/// One that has to be in the store, by its name or its digest. Throws Failure.
StoredImage image_in_store(const ImageStore& store, const std::string& text);

}  // namespace qvm
