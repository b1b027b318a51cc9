#pragma once

#include <cstdint>
#include <functional>
#include <string>

/// Disk images that are compressed: by gzip, xz or zstd, which their first bytes say.
namespace qvm::images {

/// Is told which part of a long piece of work is done, from 0 to 1.
using Headway = std::function<void(double)>;

/// `fd` is borrowed, open for reading; its offset is another afterwards. Throws std::system_error.
bool is_packed(int fd);

/// The first `size` bytes of what is packed in the file `fd`; fewer where it ends. Throws Error
/// where it is damaged.
std::string first_unpacked(int fd, std::size_t size);

/// Whether a file of so many bytes unpacks to more than any disk would, in all or without its
/// zeros, which take no room but time: each may have 1 GiB, and the data 4096 times the file's
/// size, all 32768 times, more than which nothing packs that packs once. Pure.
bool is_bomb(std::uint64_t packed, std::uint64_t size, std::uint64_t data);

/// Writes what is packed in `from` into `to`, an empty file; blocks of zeros become holes. Little
/// memory is used. Throws Error where it is damaged or a bomb, std::system_error where it cannot be
/// read or written.
void unpack(int from, int to, const Headway& headway);

}  // namespace qvm::images
