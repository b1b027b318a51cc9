#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/definition.h"
#include "launcher/image_file.h"
#include "launcher/migration.h"
#include "netns/bridge_port.h"
#include "netns/plan.h"
#include "netns/unique_fd.h"

/// Machines that were saved while they ran: `<data>/snapshot/NAME/`, from which others begin.
namespace qvm {

/// A file of a snapshot's own, in its directory.
struct SnapshotFile {
    std::string name;
    std::uint64_t size = 0;  ///< bytes
    std::string checksum;    ///< images::sparse_checksum()
};

/// What a snapshot says of itself: manifest.json.
struct Manifest {
    std::string id;       ///< eight hexadecimal digits: its name may be another's by now
    std::string created;  ///< RFC 3339, UTC
    VmOptions vm;         ///< the machine, and its network as the guest knows it
    MachineFacts machine;
    bool kvm = false;
    std::string cpu;                             ///< QEMU's -cpu
    std::optional<unsigned long> ready_ports{};  ///< QemuSpec's
    std::int64_t ready_shell = 0;                ///< ExecService::ReadyPorts's
    std::uint64_t disk_size = 0;                 ///< bytes that the guest sees; 0 without a disk
    std::vector<std::string> disks;              ///< its overlays by file name, the newest first
    std::vector<KnownFile> image;   ///< the image below them, and what is beneath, in order
    std::vector<KnownFile> others;  ///< read-only drives, in order; kernel, initrd and firmware
    std::optional<Firmware> firmware{};  ///< of UEFI
    std::vector<SnapshotFile> files;     ///< all of its own
};

/// As JSON and back. Reading throws Failure with what is wrong. Pure.
boost::json::object to_json(const Manifest& manifest);
Manifest parse_manifest(const boost::json::object& object);

/// What it says of a file of its own; null where it names none. Pure.
const SnapshotFile* find_file(const Manifest& manifest, std::string_view name);

/// That it names the files without which nothing begins with it. Throws Failure. Pure.
void check_complete(const Manifest& manifest);

/// Why a VM with these options cannot be saved; empty where it can. Pure.
std::string why_not_saved(const VmOptions& vm, bool persist);

/// A guest's network as it knows it: the values that its run had, whoever chose them. Pure.
NetOption saved_net(NetOption net, const std::optional<netns::NetworkPlan>& network,
                    const std::optional<netns::GuestPlan>& guest,
                    const std::optional<netns::PortPlan>& port);

/// A VM's options for the manifest: without what is of one life, or of the host. `net` is its
/// network as the guest knows it. Pure.
VmOptions saved_options(VmOptions vm, NetOption net);

/// The same for a clone, of which `wanted` says what may be new. Throws Failure for what may not.
/// Pure.
VmOptions clone_options(const Manifest& manifest, const VmOptions& wanted);

/// What the guest has of its network, and cannot be told to change; and what is the host's side of
/// it, which a clone may have another of. Throws Failure where the user asks for another network.
/// Pure.
NetOption clone_net(const NetOption& saved, const std::optional<NetOption>& wanted);

/// The file names within a snapshot's directory.
namespace snapshot_files {
inline constexpr const char* manifest = "manifest.json";
inline constexpr const char* memory = "memory";  ///< the guest's, with holes
inline constexpr const char* state = "state";    ///< of QEMU's devices
inline constexpr const char* seed = "seed";      ///< of cloud-init, where there was one
std::string disk(std::size_t number);
/// The name, where a file of a snapshot has it. Throws Failure for another.
std::string check_name(const std::string& name);
inline constexpr std::size_t most_disks = 16;
}  // namespace snapshot_files

/// One that is used, with its files open: they are the same until its end, whoever removes it
/// meanwhile and makes another by its name.
class Snapshot {
  public:
    /// Takes hold of the one in that directory. Throws Failure, with `what` ("snapshot 'base'").
    Snapshot(std::filesystem::path directory, std::string what);
    Snapshot(Snapshot&&) = default;
    Snapshot& operator=(Snapshot&&) = delete;
    /// One that was shared (SnapshotDraft::share()) goes with the last who uses it.
    ~Snapshot();

    [[nodiscard]] const Manifest& manifest() const noexcept { return manifest_; }
    [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }
    /// Opens a file of its own for reading; it must have the size that the manifest says.
    [[nodiscard]] UniqueFd open(const std::string& name) const;
    /// The same of the devices' state, which QEMU may load without complaint whatever is in it: it
    /// must have its checksum. Throws std::system_error, too.
    [[nodiscard]] UniqueFd open_state() const;
    /// Gives a file of its own the name `to`, too; where that cannot be (it was removed, or `to` is
    /// on another file system) that is a copy. Throws Failure.
    void link(const std::string& name, const std::filesystem::path& to) const;
    [[nodiscard]] bool has(const std::string& name) const;
    /// Opens what it needs and is not its own. Throws Failure where that has changed since.
    [[nodiscard]] UniqueFd open(const KnownFile& file) const;
    /// The disk beneath a clone's own overlay; nothing where the guest has none.
    [[nodiscard]] std::optional<ImageFile> open_disk() const;
    [[nodiscard]] const std::string& what() const noexcept { return what_; }

  private:
    std::filesystem::path directory_;
    std::string what_;
    UniqueFd lock_;
    Manifest manifest_;
    std::map<std::string, UniqueFd> files_;  ///< its own, by name
};

/// A snapshot that is being made: a directory with a name of no snapshot's and a lock, removed with
/// this object unless it was kept.
class SnapshotDraft {
  public:
    /// In `store`, for one of that name, which nobody else is at work on. Throws Failure.
    SnapshotDraft(const std::filesystem::path& store, const std::string& name);
    /// For one that never has a name. Throws Failure.
    explicit SnapshotDraft(const std::filesystem::path& store);
    SnapshotDraft(const SnapshotDraft&) = delete;
    SnapshotDraft& operator=(const SnapshotDraft&) = delete;
    ~SnapshotDraft();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    /// Writes the manifest, with the sizes and, where it will be `kept`, the checksums of all
    /// files. Throws Failure.
    void finish(Manifest manifest, bool kept);
    /// Writes the manifest of one that has all its files. Throws Failure.
    void write(const Manifest& manifest) const;
    /// Puts it in its place, on disk when it returns. Throws Failure where the name is taken.
    void keep();
    /// Others may use it from now on, and it goes with the last of them and this object.
    void share();

  private:
    void make_directory();

    std::filesystem::path store_;
    std::string name_;  ///< empty: it will have none
    std::string what_;
    std::filesystem::path path_;
    UniqueFd lock_;
    bool kept_ = false;
};

class SnapshotStore {
  public:
    explicit SnapshotStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] bool exists(const std::string& name) const;
    [[nodiscard]] std::filesystem::path path(const std::string& name) const {
        return directory_ / name;
    }
    /// Throws Failure where there is none of that name, or none that can be used.
    [[nodiscard]] Snapshot open(const std::string& name) const;
    /// Whether it is removed: not while somebody uses it, unless `force`; those have it to their
    /// end. Throws Failure where there is none.
    [[nodiscard]] bool remove(const std::string& name, bool force) const;
    /// Removes drafts that nobody is at work on any more; how many.
    [[nodiscard]] std::size_t sweep() const;
    [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

  private:
    std::filesystem::path directory_;
};

/// What a supervisor says of its machine when it has saved it.
struct SavedVm {
    double pause_ms = 0;  ///< for so long the guest stood still
    bool agent = false;   ///< the guest has one that answers
};

/// Has the VM's supervisor write its machine into the draft, which is finished then; with checksums
/// where it is `kept`. Throws Failure.
SavedVm save_vm(const Directories& directories, const std::string& vm, SnapshotDraft& draft,
                bool kept);

/// Bytes on disk of what is in a directory.
std::uint64_t space_of(const std::filesystem::path& directory);

}  // namespace qvm
