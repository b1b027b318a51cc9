#pragma once

#include <cstdint>
#include <functional>
#include <stop_token>
#include <string>

#include "images/hash.h"

/// Files of which most may be holes: a guest's memory, an overlay.
namespace qvm::images {

/// Told of a file's bytes how many are done.
using BytesDone = std::function<void(std::uint64_t)>;

/// Bytes of a file, and what it takes of them on disk. Throws std::system_error.
std::uint64_t size_of(int fd);
std::uint64_t space_of(int fd);

/// Lets `to`, an empty file, have what is in `from`, and share its blocks (FICLONE,
/// ioctl_ficlonerange(2)): where both are on one file system that can. Whether it does.
bool share_blocks(int from, int to);

/// Copies what is in the file `from` to the same offsets of `to`, an empty file, which gets its
/// size; `from` must not change meanwhile. Holes, and blocks of zeros, become holes. They share
/// their blocks where they can. The offset of `from` is another afterwards. Throws
/// std::system_error: ECANCELED soon after it was `stopped`.
void copy_sparse(int from, int to, const std::stop_token& stopped = {});

/// The same into a file that is as large already and all zeros: a new memfd that others have
/// mapped.
void fill_sparse(int from, int to, const std::stop_token& stopped = {});

/// As copy_sparse(), but never with shared blocks, and `hash` gets all that is in `from` in the
/// same pass, holes as zeros.
void copy_sparse(int from, int to, Hash& hash, const BytesDone& done);

/// Gives `hash` all that is in a file, holes as zeros. Throws std::system_error.
void hash_file(int fd, Hash& hash, const BytesDone& done);

/// Writes those pages of `bytes` to `offset` of a file that are not all zeros, and returns how many
/// bytes that were. Throws std::system_error.
std::uint64_t write_sparse(int to, std::string_view bytes, std::uint64_t offset);

/// The SHA-256 of what is in a file, in hexadecimal: of each block of 64 KiB that is not all zeros
/// (the last one may be shorter), after its number as eight bytes, little-endian. Two files of the
/// same contents have the same, wherever their holes are; size is not part of it. Throws
/// std::system_error.
std::string sparse_checksum(int fd);

}  // namespace qvm::images
