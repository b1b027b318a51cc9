#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "images/build_steps.h"
#include "images/demo.h"
#include "images/initramfs.h"

// The steps of build_demo(), one file each; not for callers outside this library.
namespace qvm::images {

/// What differs from one architecture to another.
struct DemoMachine {
    std::string debian;     ///< its name there
    std::string libraries;  ///< their directory
    std::string linker;     ///< the dynamic one, where programs look for it
    std::string console;    ///< as the kernel names it
    std::string efi;        ///< its name in those of UEFI's boot loaders
    bool bios = false;      ///< boots by that, too
};
DemoMachine demo_machine(DemoArchitecture architecture);

struct DemoPackages {
    std::filesystem::path kernel;
    std::filesystem::path busybox;
    std::filesystem::path loader;              ///< systemd-boot
    std::vector<std::filesystem::path> agent;  ///< qemu-guest-agent and all that it depends on
};

/// Downloads the packages that the demo guest is made of into `directory`; what is there already,
/// with the right hash, is not fetched again (apt-get sees to that).
DemoPackages download_packages(const std::filesystem::path& directory, const DemoMachine& machine,
                               const Runner& run, const Progress& progress);

struct DemoTree {
    std::string kernel;  ///< the bytes of vmlinuz
    std::string loader;  ///< and of UEFI's boot loader
    Tree initramfs;
};

/// Reads the packages and puts together what the guest boots.
DemoTree make_tree(const DemoPackages& packages, const DemoMachine& machine);

}  // namespace qvm::images
