#pragma once

#include <string>

// Formats that are read only to be converted; not for callers outside this library.
namespace qvm::images {

/// Throws Error unless `fd` (borrowed) holds a whole disk of that format (vmdk, vdi, vhdx, vpc as
/// QEMU calls them) in one file, with sizes that its tables have room for: QEMU opens the files
/// that a VMDK names. Of no other format anything is taken. Sources: QEMU block/*.c; the VHDX and
/// VHD Image Format Specifications.
void check_foreign_header(int fd, const std::string& format);

}  // namespace qvm::images
