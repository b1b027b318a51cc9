#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launcher/directories.h"
#include "launcher/group.h"
#include "launcher/image_file.h"
#include "launcher/last_words.h"
#include "launcher/options.h"
#include "launcher/process.h"
#include "launcher/snapshot.h"
#include "launcher/timings.h"
#include "launcher/vm_plan.h"
#include "netns/host_network.h"
#include "netns/port_forward.h"
#include "netns/route_socket.h"

namespace qvm {

/// What prepare() made ready: everything is checked, and nothing is created yet but the VM's
/// directory.
struct PreparedRun {
    /// From when there is a directory, which no signal must leave behind, until the supervisor
    /// minds them itself.
    std::unique_ptr<BlockedSignals> blocked;
    RunOptions options;
    VmPlan plan;
    Directories directories;
    std::optional<ImageFile> image;
    std::vector<ImageFile> drives;
    std::vector<KnownFile> others;     ///< read-only drives, kernel, initrd, firmware, as they are
    std::optional<Snapshot> snapshot;  ///< that the machine begins with
    std::string restore_hook;          ///< the text of --restore-hook
    UniqueFd overlay;    ///< of a VM that was created; else one is made that goes with it
    UniqueFd code;       ///< of UEFI, whose
    UniqueFd variables;  ///< are written to
    UniqueFd tpm_state;
    bool named = false;                       ///< by `qvm create`
    std::optional<Confinement> qemu_account;  ///< of --qemu-user
    bool confines = false;                    ///< QEMU has namespaces of its own
    bool privileged = false;                  ///< else the VM's namespaces are in a user namespace
    std::string id;                           ///< of this life, eight hexadecimal digits
    std::string created;                      ///< RFC 3339, UTC
    std::string why_not_kvm;                  ///< where one would expect it
    netns::Claims claims;
    netns::RouteSocket host;
    std::optional<GroupSeat> seat;         ///< its directory goes with the last member's
    std::optional<VmDirectory> directory;  ///< but for a dry run
    std::vector<netns::BoundPort> ports;   ///< in the order of the options; none for --net user
};

/// How a VM's life ended.
struct RunResult {
    int exit_status = 0;
    std::string message{};    ///< one line for the user; empty when there is nothing to say
    bool of_command = false;  ///< exit_status is that of the guest's command
    std::vector<std::string> last_words{};  ///< lines of a console that nobody saw, if that failed
    boost::json::object vm{};               ///< as `inspect` has it
};

struct Reports {
    Report note;   ///< for everybody, but for --quiet
    Report debug;  ///< for --debug
    /// The guest's CPUs run. Whether stdin and stdout are ours is decided by then.
    std::function<void()> running;
    /// Leaves the user's terminal; empty where there is none to leave.
    std::function<void()> detach;
};

/// Boots the VM, minds it until its end and takes everything down again. Blocks. Throws
/// std::exception for what fails before the guest's CPUs run.
RunResult supervise(PreparedRun run, Timings& timings, const Reports& reports);

}  // namespace qvm
