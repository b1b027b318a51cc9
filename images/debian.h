#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "images/runner.h"

namespace qvm::images {

struct DebianOptions {
    std::vector<std::string> packages;  ///< besides those that make it a guest
    std::string suite;                  ///< empty: the host's
};

/// What build_debian() needs.
extern const std::vector<BuildTool> debian_tools;

/// Builds a Debian guest, a bootable qcow2 disk, at `output` (replaced in one step once it is
/// whole; untouched if anything fails): systemd, cloud-init, an ssh server, QEMU's guest agent, and
/// the packages that were asked for, from the host's apt sources by mmdebstrap. The caller is root,
/// if only in a user namespace of many ids, and its umask 022; `work` is an existing directory with
/// room for the tree of files and, as holes, its disk, which are removed on every path. Takes a
/// minute or more; `progress` is told what it is at. Throws Error or std::system_error.
void build_debian(const std::filesystem::path& output, const std::filesystem::path& work,
                  const DebianOptions& options, const Runner& run, const Progress& progress);

}  // namespace qvm::images
