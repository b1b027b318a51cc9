#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "images/build_steps.h"

// A disk that boots Linux; not for callers outside this library.
namespace qvm::images {

/// What the disk's first sector begins with.
inline constexpr const char* boot_code = "/usr/lib/syslinux/mbr/mbr.bin";

struct BootDisk {
    std::uint32_t sectors;   ///< of 512 bytes
    std::uint32_t boot_end;  ///< where the FAT partition ends; behind it a Linux one takes the rest
    std::string append;      ///< the kernel's command line
};

/// Writes a raw disk image with a bootable FAT partition with syslinux, the kernel and the
/// initramfs (both files lie in `directory`, named vmlinuz and initrd), and returns its path in
/// `directory`. A Linux partition is left empty.
std::filesystem::path make_boot_disk(const std::filesystem::path& directory, const BootDisk& spec,
                                     const Runner& run);

}  // namespace qvm::images
