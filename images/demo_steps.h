#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "images/initramfs.h"
#include "images/runner.h"

// The steps of build_demo(), one file each; not for callers outside this library.
namespace qvm::images {

/// Runs a command that has to succeed and returns its standard output. Throws Error with `what`
/// and the last line that the program wrote.
std::string run_step(const Runner& run, const Command& command, std::string_view what);

struct DemoPackages {
    std::filesystem::path kernel;
    std::filesystem::path busybox;
    std::vector<std::filesystem::path> agent;  ///< qemu-guest-agent and all that it depends on
};

/// Downloads the packages that the demo guest is made of into `directory`; what is there already,
/// with the right hash, is not fetched again (apt-get sees to that).
DemoPackages download_packages(const std::filesystem::path& directory, const Runner& run,
                               const Progress& progress);

struct DemoTree {
    std::string kernel;  ///< the bytes of vmlinuz
    Tree initramfs;
};

/// Reads the packages and puts together what the guest boots.
DemoTree make_tree(const DemoPackages& packages);

/// Writes a raw disk image, one bootable FAT partition with syslinux, the kernel and the initramfs
/// (both files lie in `directory`, named vmlinuz and initrd), and returns its path in `directory`.
std::filesystem::path make_disk(const std::filesystem::path& directory, const Runner& run);

}  // namespace qvm::images
