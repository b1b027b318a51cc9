#pragma once

#include <map>
#include <string>
#include <vector>

#include "launcher/directories.h"
#include "launcher/image_store.h"

namespace qvm {

/// What an image of the store is the base of.
struct ImageUser {
    enum class Kind {
        running,   ///< a VM, which has it open
        warm,      ///< what --warm keeps, and can make again
        created,   ///< a VM that is of no use without it
        snapshot,  ///< likewise
    };
    Kind kind = Kind::running;
    std::string name;

    /// Whether it is lost with its image.
    [[nodiscard]] bool needs_it() const { return kind == Kind::created || kind == Kind::snapshot; }
};
std::string to_string(const ImageUser& user);
/// Each once, whatever it does with the image. Pure.
std::vector<std::string> names_of(const std::vector<ImageUser>& users);

using ImageUsers = std::map<std::string, std::vector<ImageUser>>;  ///< by digest

/// A VM or a snapshot of which one cannot read what it uses: an error for who would remove images.
enum class Unreadable { is_an_error, is_passed_over };

/// With the store's lock held alone it stays true: who begins to use an image shares it.
/// Throws Failure.
ImageUsers image_users(const Directories& directories, const ImageStore& store,
                       Unreadable unreadable);

}  // namespace qvm
