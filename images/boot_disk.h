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
    std::string efi{};       ///< what UEFI calls the architecture: "x64"; empty: UEFI boots none
    bool bios = true;        ///< a PC's boots it
};

/// Writes a raw disk image with a bootable FAT partition with the boot loaders, the kernel and the
/// initramfs (these files lie in `directory`, named loader.efi, vmlinuz and initrd), and returns
/// its path in `directory`. A Linux partition is left empty.
std::filesystem::path make_boot_disk(const std::filesystem::path& directory, const BootDisk& spec,
                                     const Runner& run);

}  // namespace qvm::images
