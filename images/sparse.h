#pragma once

#include <cstdint>
#include <string>
#include <string_view>

/// Files of which most may be holes: a guest's memory, an overlay.
namespace qvm::images {

/// Copies what is in the file `from` to the same offsets of `to`, an empty file, which gets its
/// size; `from` must not change meanwhile. Holes, and blocks of zeros, become holes. Where both are
/// on one file system that can, they share their blocks (FICLONE, ioctl_ficlonerange(2)). The
/// offset of `from` is another afterwards. Throws std::system_error.
void copy_sparse(int from, int to);

/// The same into a file that is as large already and all zeros: a new memfd that others have
/// mapped.
void fill_sparse(int from, int to);

/// Writes those pages of `bytes` to `offset` of a file that are not all zeros. Throws
/// std::system_error.
void write_sparse(int to, std::string_view bytes, std::uint64_t offset);

/// The SHA-256 of what is in a file, in hexadecimal: of each block of 64 KiB that is not all zeros
/// (the last one may be shorter), after its number as eight bytes, little-endian. Two files of the
/// same contents have the same, wherever their holes are; size is not part of it. Throws
/// std::system_error.
std::string sparse_checksum(int fd);

/// The SHA-256 of a text, in hexadecimal. Pure.
std::string checksum(std::string_view text);

}  // namespace qvm::images
