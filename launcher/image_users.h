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
    std::string unreadable{};  ///< why nobody knows what it uses; empty where one does

    /// Whether it is lost with its image.
    [[nodiscard]] bool needs_it() const { return kind == Kind::created || kind == Kind::snapshot; }
};
std::string to_string(const ImageUser& user);
/// Each once, whatever it does with the image. Pure.
std::vector<std::string> names_of(const std::vector<ImageUser>& users);

struct ImageUsers {
    std::map<std::string, std::vector<ImageUser>> known;  ///< by digest
    std::vector<ImageUser> unreadable;                    ///< who may use any

    /// Those that are known to use an image. Pure.
    [[nodiscard]] std::vector<ImageUser> of(const std::string& digest) const;
    /// Those that it cannot be removed for; with `force` only those that are lost with it. What is
    /// kept for --warm holds nothing. Pure.
    [[nodiscard]] std::vector<ImageUser> in_the_way(const std::string& digest, bool force) const;
};

/// With the store's lock held alone it stays true: who begins to use an image shares it.
/// Throws Failure.
ImageUsers image_users(const Directories& directories, const ImageStore& store);

}  // namespace qvm
