#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/kvm.h"

namespace qvm {

/// A program that qvm starts.
struct ProgramFacts {
    std::string path = {};     ///< empty: it is not installed
    std::string version = {};  ///< "7.2.22"; empty where the program does not say
};

/// What came of making a namespace and, in it, a table as qvm's own: errno values, 0 is success.
struct NamespaceFacts {
    bool privileged = false;  ///< without a user namespace
    int error = 0;
    int nft_error = 0;  ///< only where there is a namespace
    /// The sysctls that can forbid it, those that this kernel has.
    std::map<std::string, std::string> sysctls = {};
};

/// A base chain of others that ends forwarded packets which no rule of theirs accepts.
struct DroppingChain {
    /// Whose it is, as far as the way to have packets accepted depends on it.
    enum class Owner { nft, docker, firewalld, iptables_legacy };
    Owner owner = Owner::nft;
    std::string family;
    std::string table;
    std::string name;

    bool operator==(const DroppingChain&) const = default;
};

struct FirewallFacts {
    bool nft_installed = true;
    std::string nft_problem = {};           ///< what nft said when it was asked in vain
    bool legacy_unread = false;             ///< legacy rules are there, and no tool to read them
    std::vector<DroppingChain> drops = {};  ///< those that let qvm's packets pass are left out
};

struct DirectoryFacts {
    std::string name;      ///< "run"
    std::string variable;  ///< that names another
    std::filesystem::path path;
    int error = 0;  ///< of writing there, or of making it where it does not exist
};

struct DoctorFacts {
    ProgramFacts qemu;
    ProgramFacts qemu_img;
    ProgramFacts dnsmasq;
    ProgramFacts pasta;
    ProgramFacts ssh;
    std::string virtiofsd;  ///< its path; empty: it is not installed
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

/// Reads all of it; runs programs and makes a namespace for a moment (60 ms), leaves nothing
/// behind. Throws std::exception.
DoctorFacts read_doctor_facts();

/// The version in what `PROGRAM --version` prints; empty where there is none.
std::string version_in(std::string_view text);

/// The chains in the output of `nft -j list chains` that drop forwarded packets; nothing where it
/// is not such output.
std::optional<std::vector<DroppingChain>> parse_chains(std::string_view json);

/// Whether rules, as nft or iptables lists them, accept qvm's packets in both directions.
bool rules_accept_ours(std::string_view rules);

}  // namespace qvm
