#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "netns/unique_fd.h"

namespace qvm {

/// Where qvm keeps things; see docs/architecture.md.
struct Directories {
    std::filesystem::path run;    ///< of living VMs
    std::filesystem::path data;   ///< of VMs that were created, and stay
    std::filesystem::path cache;  ///< overlays (without a name) and downloads

    [[nodiscard]] std::filesystem::path groups() const { return run / ".groups"; }
    [[nodiscard]] std::filesystem::path forwarding() const { return run / ".forwarding"; }
    [[nodiscard]] std::filesystem::path listeners() const { return run / ".events"; }
    [[nodiscard]] std::filesystem::path ssh() const { return data / "ssh"; }
    [[nodiscard]] std::filesystem::path vms() const { return data / "vm"; }
    [[nodiscard]] std::filesystem::path snapshots() const { return data / "snapshot"; }
    [[nodiscard]] std::filesystem::path images() const { return data / "image"; }
    [[nodiscard]] std::filesystem::path warm() const { return cache / "warm"; }
};

/// From QVM_RUN_DIR, QVM_DATA_DIR, QVM_CACHE_DIR, the XDG variables and who we are. The directories
/// need not exist yet. Throws Failure.
Directories find_directories();

/// The id of a VM or a network: eight hexadecimal digits. Throws Failure.
std::string random_id();

/// Makes a directory (and its parents) that is ours alone, mode 0700. Throws Failure.
void make_private_directory(const std::filesystem::path& path);

/// Makes a private directory and holds its lock: one process at a time, and never for long. Whoever
/// has it may remove the directory; those who wait for it then make it anew. Throws Failure.
UniqueFd lock_directory(const std::filesystem::path& path);

/// The same, or nothing while another process has it. Throws Failure.
UniqueFd try_lock_directory(const std::filesystem::path& path);

/// The lock of a directory that is there; nothing where others have it for more than 100 ms, or
/// remove it meanwhile. Who has it does not keep it long, or it is not our turn.
UniqueFd lock_soon(const std::filesystem::path& directory);

/// Takes the lock that is a file, made if need be; nothing while another process has it. The kernel
/// drops it with its holder. Throws Failure.
std::optional<UniqueFd> try_lock_file(const std::filesystem::path& file);

/// Replaces a file as a whole: who reads it sees the old text or the new one, also after a power
/// cut where `durable`. Throws Failure.
void write_file(const std::filesystem::path& path, const std::string& text, bool durable = false);

/// Whether all was written to a descriptor, else errno says why not.
[[nodiscard]] bool write_all(int fd, std::string_view bytes);

/// Keeps what a directory has by now, also after a power cut.
void sync_directory(const std::filesystem::path& path);

/// The text of a file; nothing where it cannot be read.
std::optional<std::string> read_file(const std::filesystem::path& path);

/// The same, where the file exists; unset where it does not, too.
UniqueFd try_lock_existing(const std::filesystem::path& file);

/// The same, together with all others who do: unset while one has it alone.
UniqueFd share_lock_existing(const std::filesystem::path& file);

/// Lets others share a lock that this process had alone (or shares); nobody takes it in between.
/// Throws Failure.
void share_lock(const UniqueFd& lock);

/// The reverse: whether nobody shares it any more.
[[nodiscard]] bool unshare_lock(const UniqueFd& lock);

/// Those of a directory's subdirectories that belong to us; links are passed over.
std::vector<std::filesystem::path> directories_in(const std::filesystem::path& directory);

/// A file in a directory that has none of these names; the directory itself where it cannot be
/// read.
std::optional<std::filesystem::path> foreign_file(const std::filesystem::path& directory,
                                                  std::span<const char* const> names);

/// Removes a directory that has no other files than `names`; one that has is left as it is, since
/// somebody may have pointed a QVM_*_DIR at something else. Whether it is gone.
bool remove_directory(const std::filesystem::path& directory, std::span<const char* const> names);

/// Told of a dead VM: its name and its directory, which is locked and is removed next.
using BeforeRemoval =
    std::function<void(const std::string& name, const std::filesystem::path& directory)>;

/// Removes the directories of VMs whose supervisor is dead. A living one's is locked, and stays.
/// The names of the dead. Throws Failure.
std::vector<std::string> sweep_vms(const std::filesystem::path& run, const BeforeRemoval& before);

/// The pid of the supervisor that holds the lock of VM `name`; nothing where no VM has that name
/// now. Throws Failure where that cannot be found out, for want of descriptors.
std::optional<pid_t> supervisor_of(const std::filesystem::path& run, const std::string& name);

/// The names of all VMs that live, sorted. Throws Failure where they cannot be found out.
std::vector<std::string> living_vms(const std::filesystem::path& run);

/// The directory of one VM below the run directory, locked for as long as this object lives and
/// removed with it. Whoever has it is the only one to read or to change what the VM's name stands
/// for: its definition, its disk. After a SIGKILL the next sweep() removes it.
class VmDirectory {
  public:
    /// Throws Failure when a living VM has this name.
    VmDirectory(const std::filesystem::path& run, const std::string& name);
    VmDirectory(VmDirectory&&) = default;
    VmDirectory& operator=(VmDirectory&&) = delete;
    ~VmDirectory();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

  private:
    std::filesystem::path path_;
    UniqueFd lock_;
};

}  // namespace qvm
