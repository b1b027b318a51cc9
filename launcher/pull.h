#pragma once

#include <optional>
#include <string>

#include "images/catalogue.h"
#include "images/hash.h"
#include "launcher/image_store.h"

namespace qvm {

/// Where an image comes from, and what it is called then.
struct PullRequest {
    images::CatalogueEntry entry{};
    std::optional<images::Checksum> checksum{};  ///< the user's; else the entry's list has it
    bool quiet = false;                          ///< no notes and no progress on stderr
};

/// Pulls an image into the store, unless it is there: in one pass from the net to the disk and
/// through its checksum, and from where an earlier pull was broken off. Returns what its name
/// stands for. Throws Failure.
ImageRecord pull(const ImageStore& store, const PullRequest& request);

}  // namespace qvm
