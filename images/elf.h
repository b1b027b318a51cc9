#pragma once

#include <string>
#include <string_view>
#include <vector>

// The two things that the demo guest's builder reads from 64-bit little-endian ELF files (elf(5)).
namespace qvm::images {

/// The shared libraries that a program or library names (DT_NEEDED), none if it is static or not
/// such a file. Throws Error if the file is damaged.
std::vector<std::string> needed_libraries(std::string_view elf);

/// The values of `key` in a kernel module's .modinfo section, such as "depends" or "alias".
/// Throws Error if the file is damaged.
std::vector<std::string> module_info(std::string_view elf, std::string_view key);

}  // namespace qvm::images
