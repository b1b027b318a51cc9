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
#include <chrono>
#include <fstream>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/firewall.h"
#include "launcher/firmware.h"
#include "launcher/host.h"
#include "launcher/http.h"
#include "launcher/machine.h"
#include "launcher/process.h"
#include "netns/error.h"
#include "netns/host_network.h"
#include "netns/network.h"
#include "netns/nft.h"
#include "netns/unique_fd.h"

namespace qvm {

namespace fs = std::filesystem;

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

FirmwareFacts read_firmware(Architecture architecture) {
    FirmwareFacts facts;
    try {
        if (const auto found = find_firmware(architecture, false)) facts.path = found->code;
        if (const auto found = find_firmware(architecture, true)) facts.secure_path = found->code;
    } catch (const Failure& failure) {
        facts.unknown = failure.what();
    }
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

/// By a network like that of a VM, and a packet that is followed through the host's rules.
FirewallFacts read_firewall(const Directories& directories) {
    constexpr std::chrono::seconds patience{2};
    FirewallFacts facts;
    try {
        make_private_directory(directories.run);
        netns::RouteSocket route;
        netns::NetworkSpec spec;
        spec.id = random_id();
        spec.guest_name = "doctor";
        const auto host = netns::read_host_network(route);
        auto claims = netns::claim_networks(spec, host);
        const auto plan = netns::make_plan(spec, host, claims);
        if (plan.uplink->interface.empty())
            return {.unknown = "the host has no route to the outside"};
        netns::Network network{plan, netns::make_guest(spec, plan), std::move(claims), route,
                               directories.forwarding()};
        facts.obstacle = network.probe(patience);
        if (facts.obstacle) facts.chain = read_chain(*facts.obstacle);
    } catch (const std::exception& error) {
        facts.unknown = error.what();
    }
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

}  // namespace

DoctorFacts read_doctor_facts() {
    const auto directories = find_directories();
    DoctorFacts facts;
    facts.qemu = read_program(machine_of(Architecture::x86_64).qemu);
    facts.qemu_aarch64 = read_program(machine_of(Architecture::aarch64).qemu);
    facts.qemu_img = read_program("qemu-img");
    facts.dnsmasq = read_program("dnsmasq");
    facts.pasta = read_program("pasta");
    facts.ssh.path = find_program("ssh").value_or("");
    facts.virtiofsd = find_virtiofsd().value_or("");
    facts.swtpm = read_program("swtpm");
    facts.uefi = read_firmware(Architecture::x86_64);
    facts.uefi_aarch64 = read_firmware(Architecture::aarch64);
    facts.libcurl = find_libcurl();
    facts.gpgv.path = find_program("gpgv").value_or("");
    facts.kvm = read_kvm();
    facts.kvm_group = group_of("/dev/kvm");
    facts.tun_error = open_error("/dev/net/tun");
    facts.vhost_error = open_error("/dev/vhost-net");
    facts.namespaces = read_namespaces();
    if (facts.namespaces.privileged) facts.firewall = read_firewall(directories);
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

}  // namespace qvm
