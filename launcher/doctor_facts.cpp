#include "launcher/doctor_facts.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <fstream>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/host.h"
#include "launcher/process.h"
#include "netns/error.h"
#include "netns/nft.h"
#include "netns/unique_fd.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

std::string read_line(const fs::path& path) {
    std::ifstream file{path};
    std::string line;
    std::getline(file, line);
    return line;
}

// --- programs and devices -----------------------------------------------------------------------

ProgramFacts read_program(const std::string& name) {
    ProgramFacts facts;
    facts.path = find_program(name).value_or("");
    if (!facts.path.empty()) facts.version = version_in(run_tool({facts.path, "--version"}).out);
    return facts;
}

/// The group that may read and write a file; empty where that is root's or none.
std::string group_of(const char* path) {
    struct stat status {};
    constexpr mode_t both = S_IRGRP | S_IWGRP;
    if (::stat(path, &status) != 0 || (status.st_mode & both) != both || status.st_gid == 0)
        return {};
    const auto* group = ::getgrgid(status.st_gid);
    return group != nullptr ? group->gr_name : std::to_string(status.st_gid);
}

// --- namespaces ---------------------------------------------------------------------------------

/// What the child tells the parent.
struct Trial {
    int error = 0;
    int nft_error = 0;
};

/// A table with everything that qvm's own have; its name matters to nobody in here.
netns::nft::Table trial_table() {
    using namespace netns::nft;
    return {.name = "qvm-doctor",
            .owned = true,
            .chains = {{Chain::Hook::forward_filter, {{Established{}, Accept{}}}},
                       {Chain::Hook::postrouting_nat, {{Masquerade{}}}}}};
}

Trial try_namespace(int flags) {
    if (::unshare(flags) != 0) return {.error = errno};
    try {
        netns::nft::Socket{}.commit(trial_table());
    } catch (const netns::Error& error) {
        return {.nft_error = error.error() != 0 ? error.error() : EIO};
    }
    return {};
}

/// In a child, because who has entered a user namespace does not come back. All that it makes
/// goes with it.
Trial try_namespace_in_child(int flags) {
    std::array<int, 2> ends{};
    netns::check(::pipe2(ends.data(), O_CLOEXEC), "make a pipe");
    const UniqueFd reader{ends[0]};
    UniqueFd writer{ends[1]};
    const pid_t child = netns::check(::fork(), "start a process");
    if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        const auto trial = try_namespace(flags);
        const auto written = ::write(writer.get(), &trial, sizeof trial);
        ::_exit(written == sizeof trial ? 0 : 1);
    }
    writer.reset();
    Trial trial;
    const auto size = ::read(reader.get(), &trial, sizeof trial);
    ::waitpid(child, nullptr, 0);
    return size == sizeof trial ? trial : Trial{.error = EIO};
}

NamespaceFacts read_namespaces() {
    NamespaceFacts facts{.privileged = has_capabilities()};
    const auto trial =
        try_namespace_in_child(CLONE_NEWNET | (facts.privileged ? 0 : CLONE_NEWUSER));
    facts.error = trial.error;
    facts.nft_error = trial.nft_error;
    for (const std::string name :
         {"kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns",
          "user/max_user_namespaces", "user/max_net_namespaces"}) {
        const auto value = read_line("/proc/sys/" + name);
        auto dotted = name;
        std::ranges::replace(dotted, '/', '.');
        if (!value.empty()) facts.sysctls[dotted] = value;
    }
    return facts;
}

// --- the host's firewall ------------------------------------------------------------------------

/// The rules that would have to accept qvm's packets before `chain` drops them.
std::string rules_before(const DroppingChain& chain) {
    using Owner = DroppingChain::Owner;
    if (chain.owner == Owner::firewalld)
        return run_tool({"nft", "list", "table", chain.family, chain.table}).out;
    const auto name = chain.owner == Owner::docker ? "DOCKER-USER" : chain.name;
    return run_tool({"nft", "list", "chain", chain.family, chain.table, name}).out;
}

void read_nft(FirewallFacts& facts) {
    facts.nft_installed = find_program("nft").has_value();
    if (!facts.nft_installed) return;
    const auto result = run_tool({"nft", "-j", "list", "chains"});
    const auto chains = parse_chains(result.out);
    if (!chains) {
        facts.nft_problem = "nft list chains: " + result.err.substr(0, result.err.find('\n'));
        return;
    }
    for (const auto& chain : *chains)
        if (!rules_accept_ours(rules_before(chain))) facts.drops.push_back(chain);
}

/// The tables from before nftables, which nft does not show. They are there only once somebody
/// has used them, and looking must not make them.
void read_iptables_legacy(FirewallFacts& facts) {
    std::ifstream names{"/proc/net/ip_tables_names"};
    bool has_filter = false;
    for (std::string line; std::getline(names, line);) has_filter = has_filter || line == "filter";
    if (!has_filter) return;
    facts.legacy_unread = !find_program("iptables-legacy");
    if (facts.legacy_unread) return;
    const auto rules = run_tool({"iptables-legacy", "-S"}).out;
    if (rules.find("-P FORWARD DROP\n") != std::string::npos && !rules_accept_ours(rules))
        facts.drops.push_back(
            {DroppingChain::Owner::iptables_legacy, "legacy ip", "filter", "FORWARD"});
}

FirewallFacts read_firewall() {
    FirewallFacts facts;
    read_nft(facts);
    read_iptables_legacy(facts);
    return facts;
}

// --- directories and limits ---------------------------------------------------------------------

bool belongs_to_another(const fs::path& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && status.st_uid != ::geteuid();
}

/// What exists of a path; directories of ours are made when they are first needed.
fs::path existing_part(fs::path path) {
    std::error_code ignored;
    while (!fs::exists(path, ignored) && path.has_parent_path() && path != path.parent_path())
        path = path.parent_path();
    return path;
}

DirectoryFacts read_directory(std::string name, std::string variable, const fs::path& path) {
    const auto part = existing_part(path);
    int error = ::faccessat(AT_FDCWD, part.c_str(), W_OK | X_OK, AT_EACCESS) == 0 ? 0 : errno;
    std::error_code ignored;
    if (error == 0 && !fs::is_directory(part, ignored)) error = ENOTDIR;
    if (error == 0 && part == path && belongs_to_another(path)) error = EACCES;
    return {std::move(name), std::move(variable), path, error};
}

std::uint64_t free_space(const fs::path& path) {
    struct statvfs status {};
    if (::statvfs(existing_part(path).c_str(), &status) != 0) return 0;
    return std::uint64_t{status.f_bavail} * status.f_frsize;
}

std::uint64_t descriptor_limit() {
    struct rlimit limit {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_max;
}

// --- parsing ------------------------------------------------------------------------------------

std::string text_at(const json::object& object, std::string_view key) {
    const auto* value = object.if_contains(key);
    return value != nullptr && value->is_string() ? std::string{value->get_string()} : "";
}

/// The chain of one element of nft's list; nothing where it is something else.
const json::object* chain_in(const json::value& element) {
    const auto* object = element.if_object();
    const auto* chain = object != nullptr ? object->if_contains("chain") : nullptr;
    return chain != nullptr ? chain->if_object() : nullptr;
}

/// firewalld's chain accepts by policy; its last rule rejects.
bool drops_forwarded(const json::object& chain) {
    const auto family = text_at(chain, "family");
    const bool for_ipv4 = family == "ip" || family == "inet";
    return for_ipv4 && text_at(chain, "hook") == "forward" &&
           (text_at(chain, "policy") == "drop" ||
            (text_at(chain, "table") == "firewalld" && text_at(chain, "name") == "filter_FORWARD"));
}

}  // namespace

DoctorFacts read_doctor_facts() {
    const auto directories = find_directories();
    DoctorFacts facts;
    facts.qemu = read_program("qemu-system-x86_64");
    facts.qemu_img = read_program("qemu-img");
    facts.dnsmasq = read_program("dnsmasq");
    facts.pasta = read_program("pasta");
    facts.ssh.path = find_program("ssh").value_or("");
    facts.virtiofsd = find_virtiofsd().value_or("");
    facts.kvm = read_kvm();
    facts.kvm_group = group_of("/dev/kvm");
    facts.tun_error = open_error("/dev/net/tun");
    facts.vhost_error = open_error("/dev/vhost-net");
    facts.namespaces = read_namespaces();
    if (facts.namespaces.privileged) facts.firewall = read_firewall();
    facts.directories = {read_directory("run", "QVM_RUN_DIR", directories.run),
                         read_directory("data", "QVM_DATA_DIR", directories.data),
                         read_directory("cache", "QVM_CACHE_DIR", directories.cache)};
    facts.cache_free = free_space(directories.cache);
    facts.descriptor_limit = descriptor_limit();
    return facts;
}

std::string version_in(std::string_view text) {
    constexpr std::string_view word = "version ";
    text = text.substr(0, text.find('\n'));  // the next lines may tell the licence's
    const auto at = text.find(word);
    if (at == std::string_view::npos) return {};
    text.remove_prefix(at + word.size());
    return std::string{text.substr(0, text.find_first_not_of("0123456789."))};
}

std::optional<std::vector<DroppingChain>> parse_chains(std::string_view text) {
    json::error_code error;
    const auto root = json::parse(text, error);
    if (error || !root.is_object()) return std::nullopt;
    const auto* list = root.get_object().if_contains("nftables");
    if (list == nullptr || !list->is_array()) return std::nullopt;

    const auto& elements = list->get_array();
    const auto is_dockers = [&](const json::object& base) {
        return std::ranges::any_of(elements, [&](const json::value& element) {
            const auto* chain = chain_in(element);
            return chain != nullptr && text_at(*chain, "name") == "DOCKER-USER" &&
                   text_at(*chain, "family") == text_at(base, "family") &&
                   text_at(*chain, "table") == text_at(base, "table");
        });
    };
    std::vector<DroppingChain> result;
    for (const auto& element : elements) {
        const auto* chain = chain_in(element);
        if (chain == nullptr || !drops_forwarded(*chain)) continue;
        using Owner = DroppingChain::Owner;
        const auto table = text_at(*chain, "table");
        const auto owner = table == "firewalld" ? Owner::firewalld
                           : is_dockers(*chain) ? Owner::docker
                                                : Owner::nft;
        result.push_back({owner, text_at(*chain, "family"), table, text_at(*chain, "name")});
    }
    return result;
}

bool rules_accept_ours(std::string_view rules) {
    const auto has = [&](std::string_view part) {
        return rules.find(part) != std::string_view::npos;
    };
    return (has("iifname \"qvm-*\"") && has("oifname \"qvm-*\"")) ||
           (has("-i qvm-+") && has("-o qvm-+"));
}

}  // namespace qvm
