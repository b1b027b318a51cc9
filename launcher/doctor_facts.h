#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/kvm.h"
#include "netns/probe.h"

namespace qvm {

/// A program that qvm starts.
struct ProgramFacts {
    std::string path = {};     ///< empty: it is not installed
    std::string version = {};  ///< "7.2.22"; empty where the program does not say
};

/// A firmware that qvm would take.
struct FirmwareFacts {
    std::string unknown = {};      ///< why that cannot be told
    std::string path = {};         ///< empty: there is none
    std::string secure_path = {};  ///< the same of --secure-boot
};

/// What came of making a namespace and, in it, a table as qvm's own: errno values, 0 is success.
struct NamespaceFacts {
    bool privileged = false;  ///< without a user namespace
    int error = 0;
    int nft_error = 0;  ///< only where there is a namespace
    /// The sysctls that can forbid it, those that this kernel has.
    std::map<std::string, std::string> sysctls = {};
};

/// What came of a packet that a guest of `nat` would send.
struct FirewallFacts {
    std::string unknown = {};  ///< why that was not tried
    std::optional<netns::Obstacle> obstacle = {};
    std::string chain = {};  ///< the obstacle's text, as nft(8) has it
};

struct DirectoryFacts {
    std::string name;      ///< "run"
    std::string variable;  ///< that names another
    std::filesystem::path path;
    int error = 0;  ///< of writing there, or of making it where it does not exist
};

struct DoctorFacts {
    ProgramFacts qemu;
    ProgramFacts qemu_aarch64;
    ProgramFacts qemu_img;
    ProgramFacts dnsmasq;
    ProgramFacts pasta;
    ProgramFacts ssh;
    std::string virtiofsd;  ///< its path; empty: it is not installed
    ProgramFacts swtpm;
    FirmwareFacts uefi;
    FirmwareFacts uefi_aarch64;
    std::string libcurl;  ///< likewise
    ProgramFacts gpgv;
    KvmFacts kvm;
    std::string kvm_group;  ///< whose members may open /dev/kvm; empty: no group's
    int tun_error = 0;
    int vhost_error = 0;
    NamespaceFacts namespaces;
    FirewallFacts firewall;
    std::vector<DirectoryFacts> directories;
    std::uint64_t cache_free = 0;        ///< bytes
    std::uint64_t descriptor_limit = 0;  ///< the hard one
};

/// Reads all of it; runs programs and makes a VM's network for a moment (130 ms in all), leaves
/// nothing behind. Throws std::exception.
DoctorFacts read_doctor_facts();

/// The version in what `PROGRAM --version` prints; empty where there is none.
std::string version_in(std::string_view text);

}  // namespace qvm
