#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

// How the checks of this library read a file; not for callers outside it.
namespace qvm::images {

inline constexpr std::uint64_t max_offset = std::numeric_limits<std::int64_t>::max();

/// Throws Error if `fd` is not a regular file.
std::uint64_t regular_file_size(int fd);

/// Up to `size` bytes; fewer where the file ends. Throws std::system_error.
std::string read_at(int fd, std::uint64_t offset, std::uint64_t size);

/// The number in `width` bytes at `offset`, which have to be there. Pure.
std::uint64_t big_endian(std::string_view bytes, std::size_t offset, std::size_t width);
std::uint64_t little_endian(std::string_view bytes, std::size_t offset, std::size_t width);

/// Whether `size` bytes at `offset` lie within a file of `file_size` bytes. Pure.
bool is_within(std::uint64_t offset, std::uint64_t size, std::uint64_t file_size);

}  // namespace qvm::images
