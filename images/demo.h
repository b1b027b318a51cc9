#pragma once

#include <filesystem>
#include <vector>

#include "images/runner.h"

namespace qvm::images {

/// By Debian's names.
enum class DemoArchitecture { amd64, arm64 };

/// What build_demo() needs.
std::vector<BuildTool> demo_tools(DemoArchitecture architecture);

/// Builds the demo guest, a bootable qcow2 disk of about 15 MB, at `output` (replaced in one step
/// once it is whole; untouched if anything fails). UEFI boots it, and a PC's BIOS, too. It is made
/// of Debian's cloud kernel, busybox, systemd's boot loader and QEMU's guest agent, fetched by
/// `apt-get download`: that needs apt's package lists, but neither root nor any change to the
/// host's packages. Where the host is of another architecture, its lists are fetched, too, into a
/// directory beside the packages. Packages stay in `package_cache` if that is not empty (an
/// existing directory), so that a second build needs no network. Everything temporary lies in the
/// system's temporary directory and beside `output`, and is removed on every path.
///
/// Takes seconds; `progress` is told what it is at. Throws Error or std::system_error.
void build_demo(const std::filesystem::path& output, DemoArchitecture architecture,
                const std::filesystem::path& package_cache, const Runner& run,
                const Progress& progress);

}  // namespace qvm::images
