#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "images/build_steps.h"
#include "images/initramfs.h"

// The steps of build_demo(), one file each; not for callers outside this library.
namespace qvm::images {

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

}  // namespace qvm::images
