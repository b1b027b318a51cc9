#include "launcher/qemu_command.h"

#include <fmt/format.h>

#include <algorithm>

#include "launcher/guest_command.h"
#include "launcher/machine.h"

namespace qvm {

namespace json = boost::json;

namespace {

/// Grows a command line by options.
class Command {
  public:
    explicit Command(std::string program) { words_.push_back(std::move(program)); }
    void add(std::string option) { words_.push_back(std::move(option)); }
    void add(std::string option, std::string value) {
        words_.push_back(std::move(option));
        words_.push_back(std::move(value));
    }
    std::vector<std::string> take() { return std::move(words_); }

  private:
    std::vector<std::string> words_;
};

void add_machine(Command& command, const QemuSpec& spec) {
    command.add("-name", doubled(spec.name, ','));
    command.add("-no-user-config");
    command.add("-nodefaults");
    auto machine = fmt::format("{},{},memory-backend=memory", spec.machine,
                               machine_of(spec.architecture).options);
    if (spec.flash) machine += ",pflash0=firmware,pflash1=variables";
    if (spec.flash && spec.flash->smm) machine += ",smm=on";
    command.add("-machine", std::move(machine));
    if (spec.flash && spec.flash->smm)
        command.add("-global", "driver=cfi.pflash01,property=secure,value=on");
    // Others see it, too: virtiofsd (vhost-user), and who saves it. One that begins with what was
    // saved has copies of its own of the pages that it writes to.
    if (spec.memory_file.empty())
        command.add("-object", fmt::format("memory-backend-memfd,id=memory,size={}M,share=on",
                                           spec.memory_mib));
    else
        command.add("-object",
                    fmt::format("memory-backend-file,id=memory,size={}M,share=off,mem-path={}",
                                spec.memory_mib, doubled(spec.memory_file, ',')));
    command.add("-accel", spec.kvm ? "kvm" : "tcg");
    command.add("-cpu", spec.cpu);
    command.add("-smp", std::to_string(spec.cpus));
    command.add("-m", fmt::format("{}M", spec.memory_mib));
    command.add("-display", "none");
    if (spec.sandbox)
        command.add("-sandbox",
                    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    command.add("-S");  // the supervisor says when the CPUs run
    if (spec.incoming) command.add("-incoming", "defer");
}

void add_ready_ports(Command& command, unsigned long tag, int first) {
    for (std::size_t i = 0; i < stream_names.size(); ++i) {
        const auto id = port_id(stream_names[i], tag);
        command.add("-chardev", fmt::format("socket,id={},fd={}", id, first + static_cast<int>(i)));
        command.add("-device", fmt::format("virtserialport,chardev={0},id={0},name={1}", id,
                                           guest_port_name(stream_names[i], tag)));
    }
}

void add_channels(Command& command, const QemuSpec& spec, const QemuFds& fds) {
    command.add("-chardev", fmt::format("socket,id=qmp,fd={}", fds.qmp));
    command.add("-mon", "chardev=qmp,mode=control");
    command.add("-chardev", fmt::format("socket,id=console,fd={}", fds.console));
    command.add("-serial", "chardev:console");
    // With room for the ports that commands in the guest get.
    command.add("-device", fmt::format("virtio-serial-pci,id=ports,max_ports={}", most_ports));
    command.add("-chardev", fmt::format("socket,id=agent,fd={}", fds.agent));
    command.add("-device", fmt::format("virtserialport,chardev=agent,id={},"
                                       "name=org.qemu.guest_agent.0",
                                       agent_port));
    if (spec.ready_ports) add_ready_ports(command, *spec.ready_ports, fds.first_stream);
    const bool is_pc = machine_of(spec.architecture).is_pc;
    // SeaBIOS' log (its CONFIG_DEBUG_IO port), so that a disk that does not boot is noticed. Its
    // screen is not sent to the console, which it would reset and clear.
    if (is_pc) {
        command.add("-chardev", fmt::format("socket,id=firmware,fd={}", fds.firmware));
        command.add("-device", "isa-debugcon,iobase=0x402,chardev=firmware");
    }
    command.add("-device", "virtio-rng-pci");
    command.add("-device", "pvpanic-pci");
    // Tells the guest that it is another machine than the one that was saved.
    if (is_pc) command.add("-device", "vmgenid,guid=auto");
}

/// An image's own node. It has `backing`, a node's name, beneath it (empty: nothing) whatever it
/// says of itself, also if somebody exchanged it since it was looked at; null can be said in JSON
/// only.
std::string image_node(const std::string& format, const std::string& backing,
                       const std::string& name, bool read_only) {
    const auto* access = read_only ? R"("read-only":true)" : R"("discard":"unmap")";
    const auto beneath = backing.empty() ? "null" : fmt::format(R"("{}")", backing);
    return fmt::format(R"({{"driver":"{}","node-name":"{}","file":"{}-file",{}{}}})", format, name,
                       name, access, format == "qcow2" ? R"(,"backing":)" + beneath : "");
}

/// A descriptor as a node that QEMU opens like a file (qemu(1), "-add-fd").
void add_file(Command& command, int fd, int set, const std::string& name, bool read_only) {
    command.add("-add-fd", fmt::format("fd={},set={}", fd, set));
    command.add("-blockdev", fmt::format("driver=file,node-name={}-file,filename=/dev/fdset/{},{}",
                                         name, set, read_only ? "read-only=on" : "discard=unmap"));
}

constexpr int first_drive_set = 3;  // after the image's and the overlay's

std::string backing_name(std::size_t number) {
    return fmt::format("backing{}", number);
}

std::string beneath(const QemuDisk& disk) {
    return disk.backing.empty() ? "" : backing_name(0);
}

/// What is beneath the image, the farthest first: each is there before the one that needs it.
void add_backing(Command& command, const std::vector<std::string>& formats, int first_fd,
                 int first_set) {
    for (auto i = formats.size(); i-- > 0;) {
        const auto name = backing_name(i);
        const int number = static_cast<int>(i);
        add_file(command, first_fd + number, first_set + number, name, true);
        command.add(
            "-blockdev",
            image_node(formats[i], i + 1 < formats.size() ? backing_name(i + 1) : "", name, true));
    }
}

/// The image underneath, read-only, and the overlay that takes the writes. Both are descriptors:
/// QEMU opens no path, and the format of each is fixed (qapi/block-core.json, BlockdevOptions).
void add_overlaid_disk(Command& command, const QemuDisk& disk, const QemuFds& fds) {
    add_file(command, fds.base, 1, "base", true);
    command.add("-blockdev", image_node(disk.format, beneath(disk), "base", true));
    add_file(command, fds.overlay, 2, "disk", false);
    // What is thrown away need not survive a power cut: flushes are left out.
    command.add("-blockdev", fmt::format("driver=qcow2,node-name=disk,file=disk-file,backing=base,"
                                         "discard=unmap{}",
                                         disk.keep ? "" : ",cache.no-flush=on"));
}

void add_disk(Command& command, const QemuDisk& disk, bool boots, const QemuFds& fds) {
    if (disk.persist) {
        add_file(command, fds.base, 1, "disk", false);
        command.add("-blockdev", image_node(disk.format, beneath(disk), "disk", false));
    } else {
        add_overlaid_disk(command, disk, fds);
    }
    // -kernel takes bootindex 0 for itself.
    command.add("-device", fmt::format("virtio-blk-pci,drive=disk{}", boots ? ",bootindex=0" : ""));
}

void add_drives(Command& command, const std::vector<QemuDrive>& drives, const QemuFds& fds) {
    for (int i = 0; i < static_cast<int>(drives.size()); ++i) {
        const auto& drive = drives[static_cast<std::size_t>(i)];
        const auto name = fmt::format("drive{}", i);
        add_file(command, fds.first_drive + i, first_drive_set + i, name, drive.read_only);
        command.add("-blockdev", image_node(drive.format, "", name, drive.read_only));
        command.add("-device", fmt::format("virtio-blk-pci,drive={}{}", name,
                                           drive.serial.empty() ? "" : ",serial=" + drive.serial));
    }
}

void add_flash(Command& command, const QemuFlash& flash, int first_fd, int first_set) {
    add_file(command, first_fd, first_set, "firmware", true);
    command.add("-blockdev", image_node(flash.code_format, "", "firmware", true));
    add_file(command, first_fd + 1, first_set + 1, "variables", false);
    command.add("-blockdev", image_node(flash.variables_format, "", "variables", false));
}

void add_tpm(Command& command, const char* device, int fd) {
    command.add("-chardev", fmt::format("socket,id=tpm,fd={}", fd));
    command.add("-tpmdev", "emulator,id=tpm,chardev=tpm");
    command.add("-device", fmt::format("{},tpmdev=tpm", device));
}

void add_volumes(Command& command, const std::vector<std::string>& tags, int first) {
    for (std::size_t i = 0; i < tags.size(); ++i) {
        command.add("-chardev",
                    fmt::format("socket,id={},fd={}", tags[i], first + static_cast<int>(i)));
        command.add("-device", fmt::format("vhost-user-fs-pci,chardev={0},tag={0}", tags[i]));
    }
}

std::string fd_list(int first, unsigned count) {
    std::string list = std::to_string(first);
    for (unsigned i = 1; i < count; ++i) list += fmt::format(":{}", first + static_cast<int>(i));
    return list;
}

void add_nic(Command& command, const QemuNic& nic, int first_tap) {
    const bool several = nic.queues > 1;
    if (nic.queues == 0) {
        std::string netdev = "user,id=net0";
        for (const auto& forward : nic.host_forwards) netdev += ",hostfwd=" + forward;
        command.add("-netdev", std::move(netdev));
    } else {
        auto netdev = fmt::format("tap,id=net0,{}={}", several ? "fds" : "fd",
                                  fd_list(first_tap, nic.queues));
        if (nic.vhost)
            netdev += fmt::format(",vhost=on,{}={}", several ? "vhostfds" : "vhostfd",
                                  fd_list(first_tap + static_cast<int>(nic.queues), nic.queues));
        command.add("-netdev", std::move(netdev));
    }
    // No romfile: there is nobody to boot from over this network.
    std::string device = "virtio-net-pci,netdev=net0,romfile=";
    if (!nic.mac.empty()) device += ",mac=" + nic.mac;
    if (nic.mtu != 1500) device += fmt::format(",host_mtu={}", nic.mtu);
    if (several) device += fmt::format(",mq=on,vectors={}", 2 * nic.queues + 2);
    command.add("-device", std::move(device));
}

bool is_plain(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view{"-_=.,:/@%+"}.find(c) != std::string_view::npos;
}

}  // namespace

std::string port_id(std::string_view stream, unsigned long tag) {
    return fmt::format("exec-{}-{}", stream, tag);
}

json::object socket_chardev(const std::string& id) {
    json::object address{{"type", "fd"}};
    address["data"] = json::object{{"str", id}};
    json::object backend{{"type", "socket"}};
    backend["data"] = json::object{{"addr", std::move(address)}, {"server", false}};
    json::object chardev{{"id", id}};
    chardev["backend"] = std::move(backend);
    return chardev;
}

std::vector<std::string> qemu_command(const QemuSpec& spec, const QemuFds& fds) {
    Command command{machine_of(spec.architecture).qemu};
    add_machine(command, spec);
    add_channels(command, spec, fds);
    const int drives = static_cast<int>(spec.drives.size());
    const auto backing = spec.disk ? spec.disk->backing : std::vector<std::string>{};
    add_backing(command, backing, fds.first_drive + drives, first_drive_set + drives);
    if (spec.disk) add_disk(command, *spec.disk, spec.kernel.empty(), fds);
    add_drives(command, spec.drives, fds);
    const int files = drives + static_cast<int>(backing.size());
    int next = fds.first_drive + files;
    if (spec.flash) add_flash(command, *spec.flash, next, first_drive_set + files), next += 2;
    if (spec.tpm) add_tpm(command, machine_of(spec.architecture).tpm, next++);
    add_volumes(command, spec.volumes, next);
    if (spec.nic) add_nic(command, *spec.nic, next + static_cast<int>(spec.volumes.size()));
    // The root bus of these machines takes nothing later on.
    command.add("-device", fmt::format("pcie-root-port,id={}", hotplug_bus));
    if (!spec.bios.empty()) command.add("-bios", spec.bios);
    if (!spec.kernel.empty()) command.add("-kernel", spec.kernel);
    if (!spec.initrd.empty()) command.add("-initrd", spec.initrd);
    if (!spec.append.empty()) command.add("-append", spec.append);
    for (const auto& word : spec.extra) command.add(word);
    return command.take();
}

std::string doubled(std::string_view text, char character) {
    std::string result;
    for (const char c : text) result.append(c == character ? 2 : 1, c);
    return result;
}

std::string shell_word(const std::string& word) {
    if (!word.empty() && std::all_of(word.begin(), word.end(), is_plain)) return word;
    std::string quoted = "'";
    for (const char c : word) quoted += c == '\'' ? std::string{"'\\''"} : std::string{c};
    return quoted + "'";
}

std::string shell_text(const std::vector<std::string>& argv) {
    std::string text;
    for (const auto& word : argv) {
        if (!text.empty()) text += word.starts_with('-') ? " \\\n    " : " ";
        text += shell_word(word);
    }
    return text;
}

}  // namespace qvm
