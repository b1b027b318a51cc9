#pragma once

#include <array>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/values.h"

/// From a VM's description to QEMU's command line. Pure.
namespace qvm {

/// The numbers under which QEMU finds the descriptors that it inherits. They are part of the plan,
/// so that a dry run shows the very command that a run executes.
struct QemuFds {
    int qmp = 3;
    int console = 4;
    int agent = 5;
    int firmware = 6;  ///< what SeaBIOS says of itself
    int base = 7;      ///< the image (or, with persist, the disk), read-only without persist
    int overlay = 8;
    int first_stream = 9;  ///< of the first command: its stdin, stdout and stderr
    /// One for each; then come the files beneath the image, the firmware's code and variables, the
    /// TPM, volumes, the TAP's queues, and vhost's.
    int first_drive = 12;
};

struct QemuNic {
    std::string mac;  ///< empty: QEMU's default
    unsigned mtu = 1500;
    unsigned queues = 0;  ///< TAP descriptors; 0 is QEMU's user networking
    bool vhost = false;
    std::vector<std::string> host_forwards = {};  ///< of user networking: "tcp:127.0.0.1:8080-:80"
};

struct QemuDisk {
    std::string format;                  ///< "qcow2" or "raw"
    bool persist = false;                ///< the image itself is written to
    bool keep = false;                   ///< what is written outlives QEMU
    std::vector<std::string> backing{};  ///< formats of the files beneath it, the nearest first
};

/// A disk beside the one that boots.
struct QemuDrive {
    std::string format;
    bool read_only = false;
    std::string serial{};  ///< by which the guest may know it
};

/// Flash memory, of UEFI: two descriptors.
struct QemuFlash {
    std::string code_format;
    std::string variables_format;
    bool smm = false;  ///< only code in system management mode may write the variables
};

struct QemuSpec {
    std::string name;
    Architecture architecture = Architecture::x86_64;
    std::string machine = "q35";
    std::uint64_t memory_mib = 1024;
    bool incoming = false;      ///< it goes on with a state that it is told to load
    std::string memory_file{};  ///< path of what its memory is at first; empty: nothing but zeros
    unsigned cpus = 1;
    bool kvm = false;
    std::string cpu = "max";
    std::optional<QemuDisk> disk;
    std::vector<QemuDrive> drives{};
    std::vector<std::string> volumes{};  ///< tags of virtiofs
    std::optional<QemuNic> nic;
    std::string bios;  ///< path of a firmware; empty: QEMU's own
    std::optional<QemuFlash> flash{};
    bool tpm = false;
    std::string kernel;  ///< paths; empty: the disk boots
    std::string initrd;
    std::string append;
    std::optional<unsigned long> ready_ports = 0;  ///< tag of those that are there from the start
    bool sandbox = true;                           ///< QEMU's own filter of system calls
    std::vector<std::string> extra;                ///< the user's own, last
};

/// The bus of serial ports, and how many it has room for: the agent's, and three for each command
/// that runs in the guest.
inline constexpr const char* port_bus = "ports.0";
inline constexpr int most_ports = 64;

/// A command's streams, in the order of their ports.
inline constexpr std::array stream_names{"in", "out", "err"};
/// QEMU's id of a port and its chardev. Each command's have a tag of their own.
std::string port_id(std::string_view stream, unsigned long tag);

/// QEMU's id of the serial port that the guest agent opens, as VSERPORT_CHANGE names it.
inline constexpr const char* agent_port = "agent0";

/// Where a device is plugged in while the machine runs.
inline constexpr const char* hotplug_bus = "plug";

/// The arguments of chardev-add for a socket that QEMU was given by getfd under this name
/// (qapi/char.json).
boost::json::object socket_chardev(const std::string& id);

std::vector<std::string> qemu_command(const QemuSpec& spec, const QemuFds& fds = {});

/// With every such character twice, as QEMU's option syntax wants commas (qemu(1), "-drive").
std::string doubled(std::string_view text, char character);

/// A word as a shell reads it.
std::string shell_word(const std::string& word);

/// Words joined so that a shell reads the same words again, broken into lines at options.
std::string shell_text(const std::vector<std::string>& argv);

}  // namespace qvm
