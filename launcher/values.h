#pragma once

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "launcher/failure.h"

/// The values that options take. Pure; a value that cannot be read throws Failure with the reason
/// alone, to which the caller adds the option's name.
namespace qvm {

/// MiB. A bare number is MiB, as with QEMU; K, M, G and T (also KiB, KB, ...) are powers of 1024,
/// and what is not a whole MiB is rounded up. 0 is refused.
std::uint64_t parse_memory(std::string_view text);

/// "5s", "1.5m", "2h", "30d", "300ms"; a bare number is seconds, as with timeout(1). 0 is refused.
std::chrono::milliseconds parse_duration(std::string_view text);

/// What --net says. MODE[,key=value...]
struct NetOption {
    enum class Mode { isolated, nat, flat, user, none, bridge };
    Mode mode = Mode::nat;
    std::optional<boost::asio::ip::network_v4> subnet;
    std::optional<boost::asio::ip::address_v4> address;
    std::optional<std::string> mac;
    std::optional<unsigned> mtu;
    std::optional<boost::asio::ip::network_v4> pool;
    unsigned queues = 1;
    bool port_security = true;
    std::string bridge{};  ///< the host's, of that mode
};
NetOption parse_net(std::string_view text);

/// What --publish says: [HOSTIP:]HOSTPORT:GUESTPORT[/tcp|/udp]
struct PublishOption {
    boost::asio::ip::address host_address = boost::asio::ip::address_v4::loopback();
    std::uint16_t host_port = 0;  ///< 0: the kernel picks one
    std::uint16_t guest_port = 0;
    bool udp = false;
};
PublishOption parse_publish(std::string_view text);
/// As it is written on the command line.
std::string to_string(const PublishOption& publish);

/// What --drive says: FILE[:ro][:format=raw|qcow2]
struct DriveOption {
    std::filesystem::path file;
    bool read_only = false;
    std::string format{};  ///< empty: the file's own
};
DriveOption parse_drive(std::string_view text);
/// As it is written on the command line.
std::string to_string(const DriveOption& drive);

/// What --volume says: HOSTDIR:GUESTDIR[:ro]
struct VolumeOption {
    std::filesystem::path host_directory;
    std::string guest_directory;  ///< from the root
    bool read_only = false;
};
VolumeOption parse_volume(std::string_view text);
/// As it is written on the command line.
std::string to_string(const VolumeOption& volume);

/// What --wait-for says: how far a guest has to have come.
struct WaitForOption {
    enum class Stage { agent, ssh, cloud_init, tcp, log };
    Stage stage = Stage::agent;
    std::uint16_t port = 0;  ///< of tcp
    std::string pattern{};   ///< of log: an extended regular expression (POSIX)
};
WaitForOption parse_wait_for(std::string_view text);
/// As it is written on the command line.
std::string to_string(const WaitForOption& wait_for);

/// The reverse of parse_net().
std::string to_string(const NetOption& net);

/// A VM's name is a host name (RFC 1123, one label): letters, digits and '-', at most 63.
/// Returns it in lower case.
std::string parse_name(std::string_view text);

/// An image's name is NAME[:TAG]: letters, digits, '-', '_' and '.', at most 64.
std::string parse_image_name(std::string_view text);
/// The same, or "sha256:" and an image's SHA-256, or 12 digits or more that it begins with.
std::string parse_image_reference(std::string_view text);

/// Debian packages, a comma between two: names, each perhaps with ":ARCH" or "=VERSION".
std::vector<std::string> parse_packages(std::string_view text);

/// A release of Debian's: "bookworm", "testing".
std::string parse_suite(std::string_view text);

/// Whether guests of that mode have a network namespace.
bool has_namespace(NetOption::Mode mode);

/// "isolated", "nat", ...
std::string_view to_string(NetOption::Mode mode);

/// What --accel says: "auto", "kvm" or "tcg".
enum class Accel { automatic, kvm, tcg };
Accel parse_accel(std::string_view text);
std::string_view to_string(Accel accel);

/// What --arch says: "x86_64" or "aarch64", or Debian's "amd64" or "arm64".
enum class Architecture { x86_64, aarch64 };
Architecture parse_architecture(std::string_view text);
/// As QEMU and the kernel have it.
std::string_view to_string(Architecture architecture);

/// What --firmware says: "bios", "uefi" or a file's path.
struct FirmwareOption {
    enum class Kind { bios, uefi, file };
    Kind kind = Kind::bios;
    std::filesystem::path file{};
};
FirmwareOption parse_firmware(std::string_view text);
/// As it is written on the command line.
std::string to_string(const FirmwareOption& firmware);

/// What --uplink says: "auto", "veth" or "pasta".
enum class Uplink { automatic, veth, pasta };
Uplink parse_uplink(std::string_view text);
std::string_view to_string(Uplink uplink);

/// Reads one option's value, and says which option it was when the value is bad.
template <typename Parse>
auto value_of(std::string_view option, const std::string& text, Parse parse) {
    try {
        return parse(text);
    } catch (const Failure& failure) {
        throw Failure(std::string{option} + " '" + text + "': " + failure.what(), failure.hint());
    }
}

}  // namespace qvm
