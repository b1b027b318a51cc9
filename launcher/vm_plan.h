#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "images/seed.h"
#include "launcher/firmware.h"
#include "launcher/host.h"
#include "launcher/options.h"
#include "launcher/qemu_command.h"
#include "netns/bridge_port.h"
#include "netns/host_network.h"
#include "netns/plan.h"

namespace qvm {

/// What a run needs to know of its image.
struct ImageFacts {
    std::string format;
    std::uint64_t virtual_size = 0;      ///< bytes
    std::vector<std::string> backing{};  ///< formats of the files beneath it, the nearest first
};

/// A run, decided: values only. --dry-run prints it, Supervisor carries it out.
struct VmPlan {
    std::string name;
    std::optional<netns::NetworkPlan> network;  ///< none for `user` and `none`
    std::optional<netns::GuestPlan> guest;      ///< in that network
    std::optional<netns::PortPlan> port;        ///< of `bridge`
    QemuSpec qemu;
    std::optional<Firmware> firmware;  ///< UEFI, in qemu.flash
    std::vector<VolumeOption> volumes;
    std::vector<images::SeedFile> seed;  ///< for the guest's cloud-init: the last of qemu.drives
    std::uint64_t disk_size = 0;         ///< bytes that the guest sees; 0 without a disk
};

/// How a VM's disk is written to.
enum class Writes { throw_away, keep_overlay, image };

/// Decides what a VM's user has left open: architecture and firmware. Throws Failure for what that
/// machine cannot have. Pure.
void settle_machine(VmOptions& vm, Architecture host);

/// Whether a VM boots by UEFI, of whose firmware there is a choice. Pure.
bool has_uefi(const VmOptions& vm);

/// Pure. Throws std::exception for what does not fit together.
VmPlan make_vm_plan(const VmOptions& options, const AccelChoice& accel, const std::string& name,
                    const std::optional<ImageFacts>& image, Writes writes,
                    const std::optional<netns::NetworkPlan>& network,
                    const std::optional<netns::GuestPlan>& guest, bool vhost);

/// The port of a VM with that id on a bridge with that MTU (bytes). Without a MAC that was asked
/// for it is made from the VM's name and `machine` (machine-id(5)): the same each time, and another
/// host's VM of that name has another. Pure. Throws std::exception.
netns::PortPlan port_plan(const NetOption& net, const std::string& name, const std::string& id,
                          unsigned mtu, const std::string& machine);
QemuNic nic_of(const netns::PortPlan& port, bool vhost);

/// A --drive whose file is of that format. Pure.
QemuDrive drive_plan(const DriveOption& drive, const std::string& format);

/// The machine boots by that UEFI. Pure.
void add_firmware(const Firmware& firmware, VmPlan& plan);

/// The network's specification from --net and --group; nothing for modes without a namespace. `id`
/// is the run's own, of at most 8 characters.
std::optional<netns::NetworkSpec> network_spec(const VmOptions& options, const std::string& name,
                                               const std::string& id, netns::UplinkKind uplink);

/// A name for a VM that was given none: its snapshot's or its image's, made a host name, and
/// `suffix`. Pure.
std::string default_name(const VmOptions& options, const std::string& suffix);

/// The plan for people: the network step by step, then QEMU's command.
std::string describe(const VmPlan& plan);

}  // namespace qvm
