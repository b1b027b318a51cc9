#pragma once

#include <optional>
#include <string_view>

#include "images/hash.h"

namespace qvm::images {

/// The checksum of `file` in a list as distributions publish them: "HEX  FILE" (sha256sum(1)),
/// "SHA256 (FILE) = HEX" (BSD; those of other algorithms count for nothing), or nothing but HEX, in
/// a signed message or not. SHA-512 where it has both. Nothing where it names no such file; throws
/// Error where it has two that differ. Pure.
std::optional<Checksum> find_checksum(std::string_view list, std::string_view file);

/// The checksum of a list that has no other, whatever file it names: such as stands beside an image
/// whose URL is another name for it. Pure.
std::optional<Checksum> only_checksum(std::string_view list);

}  // namespace qvm::images
