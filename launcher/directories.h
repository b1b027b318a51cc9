#pragma once

#include <filesystem>
#include <string>

#include "netns/unique_fd.h"

namespace qvm {

/// Where qvm keeps things; see docs/architecture.md.
struct Directories {
    std::filesystem::path run;    ///< of living VMs
    std::filesystem::path cache;  ///< overlays (without a name) and downloads
};

/// From QVM_RUN_DIR, QVM_CACHE_DIR, the XDG variables and who we are. The directories need not
/// exist yet. Throws Failure.
Directories find_directories();

/// Makes a directory (and its parents) that is ours alone, mode 0700. Throws Failure.
void make_private_directory(const std::filesystem::path& path);

/// Removes what VMs whose supervisor is dead left in the run directory, and puts back what they
/// changed of the host. A living one's things are locked, and stay.
void sweep(const Directories& directories);

/// The directory of one VM below the run directory, locked for as long as this object lives and
/// removed with it. After a SIGKILL the next sweep() removes it.
class VmDirectory {
  public:
    /// Throws Failure when a living VM has this name.
    VmDirectory(const std::filesystem::path& run, const std::string& name);
    VmDirectory(const VmDirectory&) = delete;
    VmDirectory& operator=(const VmDirectory&) = delete;
    ~VmDirectory();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  private:
    std::filesystem::path path_;
    UniqueFd lock_;
};

}  // namespace qvm
