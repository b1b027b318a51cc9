#include "launcher/values.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>

#include "images/catalogue.h"
#include "launcher/failure.h"
#include "launcher/pattern.h"

namespace qvm {

namespace ip = boost::asio::ip;
using Mode = NetOption::Mode;

namespace {

struct Number {
    double value;
    std::string_view unit;
};

/// A non-negative decimal number and what follows it.
Number split_number(std::string_view text) {
    double value = 0;
    const auto* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
    if (error != std::errc{} || text.starts_with('-') || !std::isfinite(value))
        throw Failure("is not a number");
    return {value, {rest, static_cast<std::size_t>(end - rest)}};
}

template <typename Integer>
Integer parse_integer(std::string_view text) {
    Integer value{};
    const auto* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || rest != end) throw Failure("is not a whole number");
    return value;
}

/// MiB a unit; nothing for an unknown one.
std::optional<double> mebibytes(std::string_view unit) {
    if (unit.ends_with("iB"))
        unit.remove_suffix(2);
    else if (unit.size() == 2 && (unit.ends_with('B') || unit.ends_with('b')))
        unit.remove_suffix(1);
    if (unit.empty()) return 1;
    if (unit.size() != 1) return std::nullopt;
    switch (unit.front()) {
        case 'k':
        case 'K':
            return 1.0 / 1024;
        case 'm':
        case 'M':
            return 1;
        case 'g':
        case 'G':
            return 1024;
        case 't':
        case 'T':
            return 1024.0 * 1024;
        default:
            return std::nullopt;
    }
}

constexpr std::array<std::pair<std::string_view, Mode>, 6> modes{{{"isolated", Mode::isolated},
                                                                  {"nat", Mode::nat},
                                                                  {"flat", Mode::flat},
                                                                  {"user", Mode::user},
                                                                  {"none", Mode::none},
                                                                  {"bridge", Mode::bridge}}};

/// MODE, or bridge=IF.
void set_mode(NetOption& net, std::string_view text) {
    const auto equals = text.find('=');
    const auto word = text.substr(0, equals);
    for (const auto& [name, mode] : modes) {
        const bool named = equals != std::string_view::npos;
        if (name != word || named != (mode == Mode::bridge)) continue;
        net.mode = mode;
        if (named) net.bridge = text.substr(equals + 1);
        if (named && net.bridge.empty()) throw Failure("bridge= names no interface");
        return;
    }
    throw Failure(fmt::format("unknown mode '{}'", text),
                  "modes are isolated, nat, flat, user, none and bridge=IF");
}

ip::network_v4 parse_network(std::string_view text) {
    boost::system::error_code error;
    const auto network = ip::make_network_v4(std::string{text}, error);
    if (error) throw Failure("is not a network such as 192.168.26.0/24");
    return network;
}

ip::address_v4 parse_address(std::string_view text) {
    boost::system::error_code error;
    const auto address = ip::make_address_v4(std::string{text}, error);
    if (error) throw Failure("is not an IPv4 address");
    return address;
}

bool parse_on_or_off(std::string_view text) {
    if (text != "on" && text != "off") throw Failure("is neither on nor off");
    return text == "on";
}

void set_key(NetOption& net, std::string_view key, std::string_view value) {
    if (key == "subnet")
        net.subnet = parse_network(value);
    else if (key == "address")
        net.address = parse_address(value);
    else if (key == "mac")
        net.mac = std::string{value};
    else if (key == "mtu")
        net.mtu = parse_integer<unsigned>(value);
    else if (key == "queues")
        net.queues = parse_integer<unsigned>(value);
    else if (key == "pool")
        net.pool = parse_network(value);
    else if (key == "port-security")
        net.port_security = parse_on_or_off(value);
    else
        throw Failure("is not a key",
                      "keys are subnet, address, mac, mtu, queues, pool and port-security");
}

/// Keys that a mode has no use for are refused, so that nobody relies on them.
void check_keys(const NetOption& net) {
    // A port with another MTU would change the bridge's.
    if (net.mode == Mode::bridge && (net.subnet || net.address || net.mtu))
        throw Failure("subnet, address and mtu are the bridge's");
    if (!has_namespace(net.mode) && net.mode != Mode::bridge &&
        (net.subnet || net.address || net.mtu || net.queues != 1 || !net.port_security))
        throw Failure(
            fmt::format("subnet, address, mtu, queues and port-security do not go with "
                        "'{}'",
                        to_string(net.mode)));
    if (net.mode == Mode::none && net.mac) throw Failure("mac does not go with 'none'");
    if (net.mode != Mode::nat && net.pool) throw Failure("pool goes with 'nat' only");
}

bool is_name_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
}

std::uint16_t parse_port(std::string_view digits, unsigned least) {
    unsigned value = 0;
    const auto* end = digits.data() + digits.size();
    const auto [rest, error] = std::from_chars(digits.data(), end, value);
    if (error != std::errc{} || rest != end)
        throw Failure(fmt::format("'{}' is not a port", digits));
    if (value < least || value > 65535)
        throw Failure(fmt::format("port {} is not from {} to 65535", digits, least));
    return static_cast<std::uint16_t>(value);
}

}  // namespace

std::uint64_t parse_memory(std::string_view text) {
    const auto [value, unit] = split_number(text);
    const auto factor = mebibytes(unit);
    if (!factor)
        throw Failure(fmt::format("has an unknown unit '{}'", unit), "units are K, M, G and T");
    const double size = std::ceil(value * *factor);
    constexpr double largest = 1024.0 * 1024 * 1024;  // 1 EiB
    if (size > largest) throw Failure("is too large");
    if (size < 1) throw Failure("must be more than 0");
    return static_cast<std::uint64_t>(size);
}

std::chrono::milliseconds parse_duration(std::string_view text) {
    const auto [value, unit] = split_number(text);
    double milliseconds = 0;
    if (unit == "ms")
        milliseconds = value;
    else if (unit.empty() || unit == "s")
        milliseconds = value * 1e3;
    else if (unit == "m")
        milliseconds = value * 60e3;
    else if (unit == "h")
        milliseconds = value * 3600e3;
    else if (unit == "d")
        milliseconds = value * 86400e3;
    else
        throw Failure(fmt::format("has an unknown unit '{}'", unit), "units are ms, s, m, h and d");
    constexpr double largest = 3e12;  // 95 years; nanoseconds of it fit in 64 bits
    if (milliseconds > largest) throw Failure("is too long");
    if (milliseconds < 1) throw Failure("must be more than 0");
    return std::chrono::milliseconds{static_cast<std::int64_t>(milliseconds)};
}

NetOption parse_net(std::string_view text) {
    NetOption net;
    auto next = [&text] {
        const auto comma = text.find(',');
        const auto word = text.substr(0, comma);
        text.remove_prefix(comma == std::string_view::npos ? text.size() : comma + 1);
        return word;
    };
    set_mode(net, next());
    while (!text.empty()) {
        const auto word = next();
        const auto equals = word.find('=');
        try {
            if (equals == std::string_view::npos) throw Failure("has no value (key=value)");
            set_key(net, word.substr(0, equals), word.substr(equals + 1));
        } catch (const Failure& failure) {
            throw Failure(fmt::format("'{}' {}", word, failure.what()), failure.hint());
        }
    }
    check_keys(net);
    return net;
}

bool has_namespace(NetOption::Mode mode) {
    return mode == Mode::isolated || mode == Mode::nat || mode == Mode::flat;
}

PublishOption parse_publish(std::string_view text) {
    constexpr const char* form = "must be [HOSTIP:]HOSTPORT:GUESTPORT[/udp]";
    PublishOption result;
    const auto slash = text.find('/');
    const auto protocol = slash == std::string_view::npos ? "tcp" : text.substr(slash + 1);
    if (protocol != "tcp" && protocol != "udp") throw Failure(form, "protocols are tcp and udp");
    result.udp = protocol == "udp";
    text = text.substr(0, slash);
    const auto last = text.rfind(':');
    if (last == std::string_view::npos) throw Failure(form);
    result.guest_port = parse_port(text.substr(last + 1), 1);
    text = text.substr(0, last);
    const auto colon = text.rfind(':');
    if (colon != std::string_view::npos) {
        auto address = text.substr(0, colon);
        if (address.starts_with('[') && address.ends_with(']'))
            address = address.substr(1, address.size() - 2);
        boost::system::error_code error;
        result.host_address = ip::make_address(std::string{address}, error);
        if (error) throw Failure(fmt::format("'{}' is not an IP address", address));
        text = text.substr(colon + 1);
    }
    result.host_port = parse_port(text, 0);
    return result;
}

std::string to_string(const PublishOption& publish) {
    const auto address = publish.host_address.to_string();
    return fmt::format("{}:{}:{}/{}", publish.host_address.is_v6() ? "[" + address + "]" : address,
                       publish.host_port, publish.guest_port, publish.udp ? "udp" : "tcp");
}

DriveOption parse_drive(std::string_view text) {
    constexpr std::string_view format_key = "format=";
    DriveOption drive;
    for (;;) {
        const auto colon = text.rfind(':');
        if (colon == std::string_view::npos) break;
        const auto word = text.substr(colon + 1);
        if (word == "ro" || word == "rw")
            drive.read_only = word == "ro";
        else if (word.starts_with(format_key))
            drive.format = word.substr(format_key.size());
        else
            break;
        text = text.substr(0, colon);
    }
    if (text.empty()) throw Failure("must be FILE[:ro][:format=raw|qcow2]");
    if (!drive.format.empty() && drive.format != "raw" && drive.format != "qcow2")
        throw Failure(fmt::format("has an unknown format '{}'", drive.format),
                      "formats are raw and qcow2");
    drive.file = text;
    return drive;
}

std::string to_string(const DriveOption& drive) {
    return drive.file.string() + (drive.read_only ? ":ro" : "") +
           (drive.format.empty() ? "" : ":format=" + drive.format);
}

VolumeOption parse_volume(std::string_view text) {
    VolumeOption volume;
    for (const std::string_view end : {":ro", ":rw"}) {
        if (!text.ends_with(end)) continue;
        volume.read_only = end == ":ro";
        text.remove_suffix(end.size());
        break;
    }
    const auto colon = text.rfind(':');
    if (colon == std::string_view::npos || colon == 0)
        throw Failure("must be HOSTDIR:GUESTDIR[:ro]");
    volume.host_directory = text.substr(0, colon);
    const std::filesystem::path inside{text.substr(colon + 1)};
    volume.guest_directory = inside.lexically_normal().string();
    while (volume.guest_directory.ends_with('/')) volume.guest_directory.pop_back();
    if (!inside.is_absolute() || volume.guest_directory.empty())
        throw Failure(fmt::format("'{}' is no directory below the guest's '/'", inside.string()));
    return volume;
}

std::string to_string(const VolumeOption& volume) {
    return volume.host_directory.string() + ':' + volume.guest_directory +
           (volume.read_only ? ":ro" : "");
}

WaitForOption parse_wait_for(std::string_view text) {
    using Stage = WaitForOption::Stage;
    constexpr std::string_view tcp = "tcp:", log = "log:";
    if (text == "agent") return {.stage = Stage::agent};
    if (text == "ssh") return {.stage = Stage::ssh};
    if (text == "cloud-init") return {.stage = Stage::cloud_init};
    if (text.starts_with(tcp))
        return {.stage = Stage::tcp, .port = parse_port(text.substr(tcp.size()), 1)};
    if (!text.starts_with(log) || text.size() == log.size())
        throw Failure("is nothing that can be waited for",
                      "agent, ssh, cloud-init, tcp:PORT or log:REGEX");
    WaitForOption wait_for{.stage = Stage::log, .pattern = std::string{text.substr(log.size())}};
    (void)Pattern{wait_for.pattern};
    return wait_for;
}

std::string to_string(const WaitForOption& wait_for) {
    using Stage = WaitForOption::Stage;
    switch (wait_for.stage) {
        case Stage::agent:
            return "agent";
        case Stage::ssh:
            return "ssh";
        case Stage::cloud_init:
            return "cloud-init";
        case Stage::tcp:
            return fmt::format("tcp:{}", wait_for.port);
        case Stage::log:
            break;
    }
    return "log:" + wait_for.pattern;
}

std::string to_string(const NetOption& net) {
    std::string text{to_string(net.mode)};
    if (!net.bridge.empty()) text += "=" + net.bridge;
    if (net.subnet) text += ",subnet=" + net.subnet->to_string();
    if (net.address) text += ",address=" + net.address->to_string();
    if (net.mac) text += ",mac=" + *net.mac;
    if (net.mtu) text += fmt::format(",mtu={}", *net.mtu);
    if (net.pool) text += ",pool=" + net.pool->to_string();
    if (net.queues != 1) text += fmt::format(",queues={}", net.queues);
    if (!net.port_security) text += ",port-security=off";
    return text;
}

std::string parse_name(std::string_view text) {
    std::string name{text};
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    constexpr std::size_t longest = 63;
    if (name.empty() || name.size() > longest) throw Failure("must have 1 to 63 characters");
    if (!std::all_of(name.begin(), name.end(), is_name_character) || name.front() == '-' ||
        name.back() == '-')
        throw Failure("must be letters, digits and '-', as a host name is");
    return name;
}

std::string parse_image_name(std::string_view text) {
    if (text.starts_with("snapshot:") || text.starts_with("sha256:"))
        throw Failure("must not begin with 'snapshot:' or 'sha256:'");
    if (text.size() > images::longest_name)
        throw Failure(fmt::format("must have at most {} characters", images::longest_name));
    if (!images::is_image_name(text))
        throw Failure("must be NAME[:TAG], of letters, digits, '-', '_' and '.'");
    return std::string{text};
}

std::string parse_image_reference(std::string_view text) {
    constexpr std::string_view prefix = "sha256:";
    // As few as are shown: what is not typed at all would be of the only image.
    constexpr std::size_t shortest = prefix.size() + 12, longest = prefix.size() + 64;
    if (!text.starts_with(prefix)) return parse_image_name(text);
    if (text.size() < shortest || text.size() > longest ||
        text.find_first_not_of("0123456789abcdef", prefix.size()) != text.npos)
        throw Failure("must have 12 to 64 hexadecimal digits after 'sha256:'");
    return std::string{text};
}

std::vector<std::string> parse_packages(std::string_view text) {
    constexpr std::string_view others = "+-.:=~";
    const auto is_allowed = [&](unsigned char c) {
        return std::isalnum(c) != 0 || others.find(static_cast<char>(c)) != others.npos;
    };
    std::vector<std::string> names;
    for (;;) {
        const auto comma = text.find(',');
        const auto name = text.substr(0, comma);
        if (name.empty() || std::isalnum(static_cast<unsigned char>(name.front())) == 0 ||
            !std::all_of(name.begin(), name.end(), is_allowed))
            throw Failure("must be names of Debian packages, a comma between two");
        names.emplace_back(name);
        if (comma == text.npos) return names;
        text.remove_prefix(comma + 1);
    }
}

std::string parse_suite(std::string_view text) {
    std::string suite{text};
    if (suite.empty() || suite.front() == '-' ||
        !std::all_of(suite.begin(), suite.end(), [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
        }))
        throw Failure("must be the name of a Debian release, such as bookworm");
    return suite;
}

std::string_view to_string(Mode mode) {
    return std::find_if(modes.begin(), modes.end(), [&](const auto& m) { return m.second == mode; })
        ->first;
}

std::string_view to_string(Accel accel) {
    if (accel == Accel::automatic) return "auto";
    return accel == Accel::kvm ? "kvm" : "tcg";
}

std::string_view to_string(Uplink uplink) {
    if (uplink == Uplink::automatic) return "auto";
    return uplink == Uplink::veth ? "veth" : "pasta";
}

Uplink parse_uplink(std::string_view text) {
    for (const auto uplink : {Uplink::automatic, Uplink::veth, Uplink::pasta})
        if (text == to_string(uplink)) return uplink;
    throw Failure("is not an uplink", "uplinks are auto, veth and pasta");
}

Architecture parse_architecture(std::string_view text) {
    if (text == "x86_64" || text == "amd64") return Architecture::x86_64;
    if (text == "aarch64" || text == "arm64") return Architecture::aarch64;
    throw Failure("is not an architecture that is known",
                  "architectures are x86_64 (amd64) and aarch64 (arm64)");
}

std::string_view to_string(Architecture architecture) {
    return architecture == Architecture::aarch64 ? "aarch64" : "x86_64";
}

FirmwareOption parse_firmware(std::string_view text) {
    using Kind = FirmwareOption::Kind;
    if (text.empty()) throw Failure("is not bios, uefi or a file");
    if (text == "bios") return {Kind::bios};
    if (text == "uefi") return {Kind::uefi};
    return {Kind::file, text};
}

std::string to_string(const FirmwareOption& firmware) {
    if (firmware.kind == FirmwareOption::Kind::file) return firmware.file.string();
    return firmware.kind == FirmwareOption::Kind::uefi ? "uefi" : "bios";
}

Accel parse_accel(std::string_view text) {
    for (const auto accel : {Accel::automatic, Accel::kvm, Accel::tcg})
        if (text == to_string(accel)) return accel;
    throw Failure("is not an accelerator", "accelerators are auto, kvm and tcg");
}

}  // namespace qvm
