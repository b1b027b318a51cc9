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

/// Writes what is packed in `from` into `to`, an empty file; blocks of zeros become holes. Little
/// memory is used. Throws Error where it is damaged, and where it unpacks to more than any disk
/// would: 1 GiB and 4096 times its own size; std::system_error where it cannot be read or written.
void unpack(int from, int to, const Headway& headway);

}  // namespace qvm::images
