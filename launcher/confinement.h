#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "netns/unique_fd.h"

/// What a program of ours may see and do of the host that it runs on: QEMU, which a guest may have
/// taken over.
namespace qvm {

/// One thing in the root directory that such a program has. Paths are relative to it.
struct RootEntry {
    enum class Kind {
        directory,
        link,    ///< to `source`
        bind,    ///< the host's directory `source`, read-only
        file,    ///< the host's file `source`, read-only
        copy,    ///< what is in the host's file `source`, which not everybody may read
        device,  ///< the host's device `source`, of the program's user where we may make devices
    };
    Kind kind = Kind::directory;
    std::string path;
    std::string source{};

    bool operator==(const RootEntry&) const = default;
};

/// What a program may use up; setrlimit(2).
struct Limits {
    std::uint64_t memory = 0;     ///< bytes of heap and threads' stacks
    std::chrono::seconds cpu{0};  ///< of all its threads
    std::uint64_t file_size = 0;  ///< bytes of a file that it writes
};

struct Confinement {
    /// A directory of ours, on which the new root is mounted, in a mount namespace that nobody else
    /// sees. Empty: the program sees the host's files.
    std::string mount_point;
    std::vector<RootEntry> root;
    bool own_network = false;  ///< an empty network namespace; else the one that it is started in
    std::optional<uid_t> uid;  ///< unset: ours
    gid_t gid = 0;
    std::optional<std::vector<gid_t>> groups{};  ///< beside it, for a uid that is set; unset: ours
    bool keep_capabilities = false;              ///< of root; others have none
    int kept_capability = -1;                    ///< this one, also with another uid; -1: none
    bool keeps_to_itself = false;                ///< see seccomp.h
    /// The child's number of what allowed_opens() returned: it opens nothing else. -1: anything.
    int allowed_opens = -1;
    std::optional<Limits> limits{};  ///< unset: ours
};

/// Ids of a user namespace, as in /proc/PID/uid_map.
struct MappedIds {
    std::uint64_t first = 0;  ///< inside
    std::uint64_t count = 0;
};
/// Reads such a file's text. Pure.
std::vector<MappedIds> parse_id_map(std::string_view text);

/// A user and group id that nobody else has, for the VM with this id: of those that no system gives
/// to anybody, or, where they are not mapped, of those that are. Nothing where all that is mapped
/// is root. Pure.
std::optional<uid_t> throw_away_id(std::uint32_t vm, const std::vector<MappedIds>& uids,
                                   const std::vector<MappedIds>& gids);

/// The root directory of a program: the system's software, what is installed with `program` (a
/// canonical path), `files` at their own paths, and devices. Reads the host's directories. Throws
/// std::filesystem::filesystem_error.
std::vector<RootEntry> root_for(const std::filesystem::path& program,
                                const std::vector<std::filesystem::path>& files,
                                const std::vector<std::string>& devices);

/// The ids of a VM's QEMU in the user namespace that this process is in; see throw_away_id().
/// Throws Failure.
std::optional<uid_t> throw_away_id(std::uint32_t vm);

/// The groups that may use these devices of the host, where not everybody may.
std::vector<gid_t> groups_of(const std::vector<std::string>& devices);

/// A program that runs as that account (a name or a number), and otherwise as any program of it
/// does. Throws Failure where there is none, or where it is not ours and `privileged` is false.
Confinement as_account(const std::string& user, bool privileged);

/// For a program that reads what anybody may have written, and is not worth a root directory of its
/// own: it opens the system's software, what is installed with `program` (a canonical path), and
/// once more the files that it has as descriptors `reads` and, for writing, too, `writes` (by
/// /proc/self/fd/N). A ruleset of landlock(7); none where the kernel has no such thing. Throws
/// Failure.
UniqueFd allowed_opens(const std::filesystem::path& program, const std::vector<int>& reads,
                       const std::vector<int>& writes);

/// Entries with the directories that they are in, each once. Pure.
std::vector<RootEntry> with_directories(const std::vector<RootEntry>& entries);

/// Confines the calling process, before it executes the program. Allocates nothing, since it runs
/// between vfork and exec. Returns the call that failed, with errno; nullptr when all is well.
const char* confine(const Confinement& confinement) noexcept;

}  // namespace qvm
