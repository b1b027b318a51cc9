#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "images/hash.h"
#include "launcher/guest_command.h"
#include "launcher/values.h"

namespace qvm {

constexpr unsigned most_cpus = 255;  ///< of the q35 machine without an IOMMU

/// What makes a VM; `qvm create` keeps it.
struct VmOptions {
    std::optional<std::filesystem::path> image;  ///< may be missing with a kernel
    std::optional<std::string> image_name;       ///< what the user calls it, if it is the store's
    /// That the machine begins with: a name, or a directory's path. What is of the machine itself
    /// is the snapshot's then.
    std::optional<std::string> snapshot;
    std::optional<std::uint64_t> disk_mib;  ///< what the guest sees of it; unset: the image's
    std::uint64_t memory_mib = 1024;
    unsigned cpus = 1;
    std::optional<std::filesystem::path> user_data;  ///< for cloud-init
    std::vector<std::filesystem::path> ssh_keys;     ///< files of public keys, for cloud-init
    std::vector<VolumeOption> volumes;
    std::vector<DriveOption> drives;  ///< beside the image's disk
    std::optional<NetOption> net;     ///< unset: nat, or whatever the group has
    std::optional<std::string> group;
    Uplink uplink = Uplink::automatic;
    std::vector<PublishOption> publish;
    std::optional<std::filesystem::path> kernel;
    std::optional<std::filesystem::path> initrd;
    std::optional<std::string> append;
    std::optional<Architecture> arch;  ///< unset: the host's
    /// Unset: a PC's BIOS, another machine's UEFI.
    std::optional<FirmwareOption> firmware;
    bool secure_boot = false;
    bool tpm = false;
    bool trust_backing = false;
    bool allow_host = false;
    bool port_isolation = false;
    Accel accel = Accel::automatic;
    std::optional<std::string> qemu_user;  ///< unset: one that is nobody's
    std::vector<std::string> qemu_args;

    [[nodiscard]] NetOption net_or_default() const { return net.value_or(NetOption{}); }
    /// The image as the user calls it; empty where there is none.
    [[nodiscard]] std::string image_text() const {
        return image_name.value_or(image.value_or("").string());
    }
};

/// How much is said on stderr.
struct Verbosity {
    bool quiet = false;
    bool debug = false;
};

/// qvm run
struct RunOptions {
    VmOptions vm;
    std::optional<std::string> name;
    bool detach = false;
    bool persist = false;
    bool dry_run = false;
    bool audit = false;
    bool timings = false;
    std::optional<std::filesystem::path> timings_file;
    std::optional<std::chrono::milliseconds> timeout;
    std::optional<std::chrono::milliseconds> boot_timeout;
    std::vector<WaitForOption> wait_for;
    std::optional<GuestCommand> command;  ///< instead of the console
    bool interactive = false;             ///< our stdin is the command's
    std::optional<std::filesystem::path> result_file;
    std::optional<std::filesystem::path> restore_hook;  ///< a shell script for the guest
    enum class Warm { off, on, refresh };
    Warm warm = Warm::off;  ///< begins with what an earlier run has booted
    Verbosity verbosity;
};

/// qvm create
struct CreateOptions {
    VmOptions vm;
    std::optional<std::string> name;
};

/// qvm start
struct StartOptions {
    std::string name;
    std::optional<std::chrono::milliseconds> boot_timeout;
    std::vector<WaitForOption> wait_for;
    Verbosity verbosity;
};

/// qvm rm
struct RemoveOptions {
    std::vector<std::string> names;
    bool force = false;
};

/// qvm stop, kill, wait, ...: what is done to VMs that live.
struct VerbOptions {
    enum class Verb { stop, kill, wait, pause, resume, restart };
    Verb verb = Verb::stop;
    std::vector<std::string> names;
    std::chrono::milliseconds timeout{10'000};  ///< stop, restart: of the guest to power down
};

/// qvm ps
struct PsOptions {
    bool all = false;
    bool json = false;
    bool names = false;
};

/// qvm inspect
struct InspectOptions {
    std::vector<std::string> names;
};

/// qvm logs
struct LogsOptions {
    std::string name;
    bool follow = false;
};

/// qvm console
struct ConsoleOptions {
    std::string name;
};

/// qvm exec
struct ExecOptions {
    std::string name;
    GuestCommand command;
    bool interactive = false;  ///< our stdin is the command's
};

/// qvm ssh
struct SshOptions {
    std::string name;
    std::string user = "root";
    std::vector<std::string> command;  ///< for the guest's shell; empty: a login
    bool proxy = false;                ///< be ssh's ProxyCommand
};

/// qvm ssh-config
struct SshConfigOptions {
    std::vector<std::string> names;  ///< none: of all VMs that run
};

/// A file or directory, of a VM or of this host.
struct CopyPlace {
    std::optional<std::string> vm;
    std::string path;
};
std::string to_string(const CopyPlace& place);

/// qvm cp: one of the two is a VM's.
struct CopyOptions {
    CopyPlace from;
    CopyPlace to;
    bool quiet = false;
};

/// qvm events
struct EventsOptions {
    bool json = false;
};

/// qvm qmp
struct QmpOptions {
    std::string name;
    std::string command;
    std::string arguments;  ///< JSON; may be empty
};

/// qvm net ls
struct NetLsOptions {
    bool json = false;
};

/// qvm net inspect
struct NetInspectOptions {
    std::string name;
};

/// qvm net exec
struct NetExecOptions {
    std::string name;
    std::vector<std::string> command;
};

/// qvm gc
struct GcOptions {};

/// qvm doctor
struct DoctorOptions {
    bool json = false;
};

/// qvm fork
struct ForkOptions {
    std::string vm;
    unsigned count = 1;
    std::optional<std::string> name;   ///< of the clone, or of all and a number
    std::vector<std::string> publish;  ///< words of the command line, as are
    std::vector<std::string> volumes;
    std::optional<std::filesystem::path> restore_hook;
    bool quiet = false;
};

/// qvm snapshot create
struct SnapshotCreateOptions {
    std::string vm;
    std::string snapshot;
    bool quiet = false;
};

/// qvm snapshot ls
struct SnapshotLsOptions {
    bool json = false;
    bool names = false;
};

/// qvm snapshot inspect
struct SnapshotInspectOptions {
    std::vector<std::string> names;
};

/// qvm snapshot export
struct SnapshotExportOptions {
    std::string snapshot;
    std::filesystem::path file;
};

/// qvm snapshot import
struct SnapshotImportOptions {
    std::filesystem::path file;
    std::string snapshot;
    std::optional<std::filesystem::path> image;  ///< where it is here
};

/// qvm snapshot rm
struct SnapshotRmOptions {
    std::vector<std::string> names;
    bool force = false;
};

/// qvm image demo [PATH]
struct ImageDemoOptions {
    std::filesystem::path path;
    std::optional<Architecture> arch;  ///< unset: the host's
    bool quiet = false;
};

/// qvm image pull
struct ImagePullOptions {
    std::string image;  ///< the catalogue's name, or a URL
    std::optional<std::string> name;
    std::optional<images::Checksum> checksum;
    std::optional<Architecture> arch;
    bool quiet = false;
};

/// qvm image import
struct ImageImportOptions {
    std::filesystem::path file;
    std::string name;
    std::optional<Architecture> arch;
    bool trust_backing = false;
};

/// qvm image ls
struct ImageLsOptions {
    bool catalogue = false;
    bool json = false;
    bool names = false;
};

/// qvm image inspect
struct ImageInspectOptions {
    std::vector<std::string> names;
};

/// qvm image tag
struct ImageTagOptions {
    std::string image;
    std::string name;
};

/// qvm image export
struct ImageExportOptions {
    std::string image;
    std::filesystem::path file;
};

/// qvm image rm
struct ImageRmOptions {
    std::vector<std::string> names;
    bool force = false;
};

/// qvm image prune
struct ImagePruneOptions {
    std::optional<std::chrono::milliseconds> older_than;
};

/// qvm image verify
struct ImageVerifyOptions {
    std::vector<std::string> names;  ///< none: all that there is
};

/// qvm image build-debian [PATH]
struct ImageBuildDebianOptions {
    std::filesystem::path path;
    std::vector<std::string> packages;
    std::string suite;  ///< empty: the host's
    bool quiet = false;
};

/// qvm completion
struct CompletionOptions {
    enum class Shell { bash, zsh, fish };
    Shell shell = Shell::bash;
};

/// Nothing to do but to print `text` on stdout: help, version.
struct PrintText {
    std::string text;
};

using Command =
    std::variant<RunOptions, CreateOptions, StartOptions, RemoveOptions, VerbOptions, PsOptions,
                 InspectOptions, LogsOptions, ConsoleOptions, ExecOptions, SshOptions,
                 SshConfigOptions, CopyOptions, EventsOptions, QmpOptions, NetLsOptions,
                 NetInspectOptions, NetExecOptions, GcOptions, DoctorOptions, ForkOptions,
                 SnapshotExportOptions, SnapshotImportOptions, SnapshotCreateOptions,
                 SnapshotLsOptions, SnapshotInspectOptions, SnapshotRmOptions, ImageDemoOptions,
                 ImageBuildDebianOptions, ImagePullOptions, ImageImportOptions, ImageLsOptions,
                 ImageInspectOptions, ImageTagOptions, ImageExportOptions, ImageRmOptions,
                 ImagePruneOptions, ImageVerifyOptions, CompletionOptions, PrintText>;

/// The command line as a value. Pure. Throws Failure.
Command parse_command_line(int argc, const char* const* argv);

/// An option, or a positional argument, as the parser knows it.
struct ArgumentShape {
    std::vector<std::string> names;  ///< "-m", "--memory"; a positional's one name has no dash
    std::string what;                ///< one line
    std::string value;               ///< what a value is: "FILE"; empty for a flag
    bool value_required = true;      ///< else it only goes with '=': --timings=FILE
    bool repeatable = false;
};

/// A command as the parser knows it; qvm itself has the empty path.
struct CommandShape {
    std::vector<std::string> path;  ///< "net", "exec"
    std::string what;
    std::vector<ArgumentShape> options;
    std::vector<ArgumentShape> positionals;
    std::vector<CommandShape> subcommands;
    bool takes_command = false;  ///< after its positionals: somebody else's command line
};

/// All that parse_command_line() takes. Pure.
CommandShape command_line_shape();

}  // namespace qvm
