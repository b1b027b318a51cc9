#include "launcher/vm_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "launcher/failure.h"
#include "launcher/image_file.h"
#include "launcher/machine.h"
#include "launcher/publish.h"
#include "launcher/tpm.h"
#include "launcher/volumes.h"

namespace qvm {

namespace {

netns::Mode to_netns(NetOption::Mode mode) {
    if (mode == NetOption::Mode::isolated) return netns::Mode::isolated;
    return mode == NetOption::Mode::flat ? netns::Mode::flat : netns::Mode::nat;
}

/// The text with every line after the first moved right.
std::string indented(std::string_view text, std::size_t columns) {
    std::string result;
    for (const char c : text) {
        result += c;
        if (c == '\n') result.append(columns, ' ');
    }
    return result;
}

std::string namesake(const VmOptions& options) {
    if (options.snapshot) return std::filesystem::path{*options.snapshot}.filename().string();
    if (options.image_name) return *options.image_name;
    return options.image ? options.image->stem().string() : "vm";
}

/// Without the end of its last line.
std::string_view trimmed(std::string_view text) {
    return text.substr(0, text.find_last_not_of('\n') + 1);
}

std::optional<QemuNic> make_nic(const VmOptions& options,
                                const std::optional<netns::NetworkPlan>& network,
                                const std::optional<netns::GuestPlan>& guest, bool vhost) {
    const auto net = options.net_or_default();
    if (net.mode == NetOption::Mode::none || net.mode == NetOption::Mode::bridge)
        return std::nullopt;
    if (network && guest)
        return QemuNic{
            .mac = guest->mac, .mtu = network->mtu, .queues = guest->queues, .vhost = vhost};
    if (net.mac) netns::check_mac(*net.mac);
    QemuNic nic{.mac = net.mac.value_or("")};
    for (const auto& port : options.publish) nic.host_forwards.push_back(host_forward(port));
    return nic;
}

}  // namespace

void settle_machine(VmOptions& vm, Architecture host) {
    using Kind = FirmwareOption::Kind;
    if (!vm.arch) vm.arch = host;
    const bool is_pc = machine_of(*vm.arch).is_pc;
    if (!vm.firmware) vm.firmware = {is_pc && !vm.secure_boot ? Kind::bios : Kind::uefi};
    if (!is_pc && vm.firmware->kind == Kind::bios)
        throw Failure("--firmware bios: is a PC's, and an aarch64 machine is none",
                      "--firmware uefi");
}

bool has_uefi(const VmOptions& vm) {
    return vm.firmware && vm.firmware->kind == FirmwareOption::Kind::uefi;
}

VmPlan make_vm_plan(const VmOptions& options, const AccelChoice& accel, const std::string& name,
                    const std::optional<ImageFacts>& image, Writes writes,
                    const std::optional<netns::NetworkPlan>& network,
                    const std::optional<netns::GuestPlan>& guest, bool vhost) {
    VmPlan plan;
    plan.name = name;
    plan.network = network;
    plan.guest = guest;
    auto& qemu = plan.qemu;
    qemu.name = name;
    qemu.architecture = options.arch.value_or(host_architecture());
    const auto& machine = machine_of(qemu.architecture);
    qemu.machine = machine.type;
    qemu.memory_mib = options.memory_mib;
    qemu.cpus = options.cpus;
    qemu.kvm = accel.kvm;
    qemu.cpu = accel.cpu;
    if (image)
        qemu.disk = QemuDisk{.format = image->format,
                             .persist = writes == Writes::image,
                             .keep = writes != Writes::throw_away,
                             .backing = image->backing};
    if (image) plan.disk_size = disk_size(options.disk_mib, image->virtual_size);
    plan.volumes = options.volumes;
    for (std::size_t i = 0; i < plan.volumes.size(); ++i) qemu.volumes.push_back(volume_tag(i));
    qemu.nic = make_nic(options, network, guest, vhost);
    // QEMU starts elsewhere.
    const auto path = [](const std::filesystem::path& file) {
        return std::filesystem::absolute(file).lexically_normal().string();
    };
    if (options.kernel) qemu.kernel = path(*options.kernel);
    if (options.initrd) qemu.initrd = path(*options.initrd);
    if (options.kernel)
        qemu.append = options.append.value_or(fmt::format("console={}", machine.console));
    if (options.firmware && options.firmware->kind == FirmwareOption::Kind::file)
        qemu.bios = path(options.firmware->file);
    qemu.tpm = options.tpm;
    qemu.sandbox = !options.qemu_user;
    qemu.extra = options.qemu_args;
    return plan;
}

netns::PortPlan port_plan(const NetOption& net, const std::string& name, const std::string& id,
                          unsigned mtu, const std::string& machine) {
    netns::PortPlan port;
    port.bridge = net.bridge;
    port.link = netns::host_link_name(id);
    // FNV-1a, of which three bytes go behind QEMU's prefix.
    std::uint32_t hash = 2166136261U;
    for (const char c : machine + "/" + name)
        hash = (hash ^ static_cast<unsigned char>(c)) * 16777619U;
    port.mac = net.mac.value_or(fmt::format("52:54:00:{:02x}:{:02x}:{:02x}", hash >> 16 & 0xff,
                                            hash >> 8 & 0xff, hash & 0xff));
    netns::check_mac(port.mac);
    port.mtu = mtu;
    port.queues = net.queues;
    port.port_security = net.port_security;
    return port;
}

QemuNic nic_of(const netns::PortPlan& port, bool vhost) {
    return {.mac = port.mac, .mtu = port.mtu, .queues = port.queues, .vhost = vhost};
}

QemuDrive drive_plan(const DriveOption& drive, const std::string& format) {
    constexpr std::size_t longest = 20;  // VIRTIO_BLK_ID_BYTES
    auto serial = drive.file.stem().string().substr(0, longest);
    for (char& c : serial)
        if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '-';
    return {.format = format, .read_only = drive.read_only, .serial = std::move(serial)};
}

void add_firmware(const Firmware& firmware, VmPlan& plan) {
    plan.firmware = firmware;
    plan.qemu.flash = QemuFlash{.code_format = firmware.code_format,
                                .variables_format = firmware.variables_format,
                                .smm = firmware.smm};
}

std::optional<netns::NetworkSpec> network_spec(const VmOptions& options, const std::string& name,
                                               const std::string& id, netns::UplinkKind uplink) {
    const auto net = options.net_or_default();
    if (!has_namespace(net.mode)) return std::nullopt;
    netns::NetworkSpec spec;
    spec.mode = to_netns(net.mode);
    spec.uplink = uplink;
    spec.subnet = net.subnet;
    spec.address = net.address;
    spec.mac = net.mac;
    spec.mtu = net.mtu;
    spec.pool = net.pool;
    spec.queues = net.queues;
    spec.id = id;
    spec.guest_name = name;
    spec.shared = options.group.has_value();
    spec.port_isolation = options.port_isolation;
    spec.port_security = net.port_security;
    spec.allow_host = options.allow_host;
    return spec;
}

std::string default_name(const VmOptions& options, const std::string& suffix) {
    auto stem = namesake(options);
    for (char& c : stem) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))) c = '-';
    }
    constexpr std::size_t longest = 40;
    stem.resize(std::min(stem.size(), longest));
    const auto first = stem.find_first_not_of('-');
    const auto last = stem.find_last_not_of('-');
    stem = first == std::string::npos ? "vm" : stem.substr(first, last - first + 1);
    return stem + "-" + suffix;
}

std::string describe(const VmPlan& plan) {
    std::string text;
    std::vector<std::string> steps;
    if (plan.network) steps = netns::describe(*plan.network, *plan.guest);
    if (plan.port) steps = netns::describe(*plan.port);
    if (!steps.empty()) text += "network:\n";
    for (std::size_t i = 0; i < steps.size(); ++i)
        text += fmt::format("{:>3}. {}\n", i + 1, indented(steps[i], 5));
    if (!steps.empty()) text += "\n";
    if (!plan.volumes.empty()) text += "volumes:\n";
    for (const auto& volume : plan.volumes)
        text += shell_text(virtiofsd_command("virtiofsd", volume, 3)) + "\n";
    if (!plan.volumes.empty()) text += "\n";
    if (plan.firmware)
        text += fmt::format("firmware:\n  {}\n  variables at first: {}\n\n",
                            plan.firmware->code.string(), plan.firmware->variables.string());
    if (plan.qemu.tpm) text += "tpm:\n" + shell_text(swtpm_command(3, 4)) + "\n\n";
    if (!plan.seed.empty()) text += "seed:\n";
    for (const auto& file : plan.seed)
        text += fmt::format("  {}:\n    {}\n", file.name, indented(trimmed(file.text), 4));
    if (!plan.seed.empty()) text += "\n";
    return text + "qemu:\n" + shell_text(qemu_command(plan.qemu)) + "\n";
}

}  // namespace qvm
