#include "launcher/confinement.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <pwd.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <set>
#include <sstream>
#include <system_error>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/seccomp.h"

namespace qvm {

namespace fs = std::filesystem;
using Kind = RootEntry::Kind;

namespace {

// "Unused" in systemd's table of who gives out which ids (docs/UIDS-GIDS.md), and below 2^31.
constexpr std::uint32_t first_unused_id = 0x70000000;
constexpr std::uint32_t unused_ids = 0x10000000;

// Where distributions have programs, libraries and firmware. Nothing of it is anybody's own.
constexpr std::array<const char*, 11> system_paths{"/usr",
                                                   "/bin",
                                                   "/sbin",
                                                   "/lib",
                                                   "/lib32",
                                                   "/lib64",
                                                   "/libx32",
                                                   "/nix/store",
                                                   "/gnu/store",
                                                   "/etc/ld.so.cache",
                                                   "/etc/alternatives"};

// Of the kernel's later versions than Debian 12's.
constexpr std::uint64_t may_truncate = 1 << 14;
constexpr int truncate_version = 3;
constexpr int refer_version = 2;

bool is_within(const fs::path& path, const fs::path& directory) {
    const auto relative = path.lexically_relative(directory);
    return !relative.empty() && *relative.begin() != "..";
}

bool is_mapped(const std::vector<MappedIds>& ids, std::uint64_t first, std::uint64_t count) {
    return std::any_of(ids.begin(), ids.end(), [&](const auto& range) {
        return range.first <= first && first + count <= range.first + range.count;
    });
}

/// What a program needs that is installed outside of the system's directories.
fs::path home_of(const fs::path& program) {
    const auto directory = program.parent_path();
    const auto prefix = directory.parent_path();
    return directory.filename() == "bin" && fs::exists(prefix / "share" / "qemu") ? prefix
                                                                                  : directory;
}

/// Where a path leads that begins with a link of the root directory, such as /lib.
fs::path behind_links(const fs::path& path, const std::vector<RootEntry>& entries) {
    for (const auto& entry : entries) {
        const auto link = "/" / fs::path{entry.path};
        if (entry.kind == Kind::link && is_within(path, link) && path != link)
            return "/" / fs::path{entry.source} / path.lexically_relative(link);
    }
    return path;
}

std::optional<RootEntry> entry_of(const fs::path& path) {
    const auto relative = path.relative_path().string();
    const auto status = fs::symlink_status(path);
    if (fs::is_symlink(status))
        return RootEntry{Kind::link, relative, fs::read_symlink(path).string()};
    if (fs::is_directory(status)) return RootEntry{Kind::bind, relative, path.string()};
    if (fs::is_regular_file(status)) return RootEntry{Kind::file, relative, path.string()};
    return std::nullopt;
}

RootEntry entry_of_file(const fs::path& path) {
    const auto permissions = fs::status(path).permissions();
    const bool for_all = (permissions & fs::perms::others_read) != fs::perms::none;
    return {for_all ? Kind::file : Kind::copy, path.relative_path().string(), path.string()};
}

Failure cannot_restrict(const std::string& step) {
    return Failure(fmt::format("restrict what a program opens: {}: {}", step,
                               std::generic_category().message(errno)));
}

void allow(int rules, int fd, std::uint64_t access) {
    landlock_path_beneath_attr beneath{};
    beneath.allowed_access = access;
    beneath.parent_fd = fd;
    if (::syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0U) != 0)
        throw cannot_restrict("add a rule");
}

void allow_path(int rules, const fs::path& path, std::uint64_t access) {
    const UniqueFd fd{::open(path.c_str(), O_PATH | O_CLOEXEC)};
    if (!fd && errno == ENOENT) return;  // not every system has it
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0)
        throw cannot_restrict(fmt::format("open '{}'", path.string()));
    constexpr std::uint64_t of_files =
        LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE;
    allow(rules, fd.get(), S_ISDIR(status.st_mode) ? access : access & of_files);
}

// --- between vfork and exec ---------------------------------------------------------------------

bool touch(const char* path) noexcept {
    const int fd = ::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0) ::close(fd);
    return fd >= 0;
}

bool bind(const char* source, const char* path) noexcept {
    return ::mount(source, path, nullptr, MS_BIND | MS_REC, nullptr) == 0;
}

bool copy(const char* source, const char* path) noexcept {
    const int from = ::open(source, O_RDONLY | O_CLOEXEC);
    const int to = ::open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    bool done = from >= 0 && to >= 0;
    constexpr std::size_t most = 1 << 30;
    for (ssize_t size = 1; done && size > 0; done = size >= 0)
        size = ::sendfile(to, from, nullptr, most);
    const int error = errno;
    ::close(from);
    ::close(to);
    errno = error;
    return done;
}

bool add_device(const char* source, const char* path, const Confinement& confinement) noexcept {
    struct stat status {};
    if (::stat(source, &status) != 0) return false;
    if (::mknod(path, S_IFCHR | 0600, status.st_rdev) == 0)
        return !confinement.uid || ::chown(path, *confinement.uid, confinement.gid) == 0;
    return touch(path) && bind(source, path);  // in a user namespace
}

bool add(const RootEntry& entry, const Confinement& confinement) noexcept {
    const char* path = entry.path.c_str();
    const char* source = entry.source.c_str();
    switch (entry.kind) {
        case Kind::directory:
            return ::mkdir(path, 0755) == 0;
        case Kind::link:
            return ::symlink(source, path) == 0;
        case Kind::bind:
            return ::mkdir(path, 0755) == 0 && bind(source, path);
        case Kind::file:
            return touch(path) && bind(source, path);
        case Kind::copy:
            return copy(source, path);
        case Kind::device:
            return add_device(source, path, confinement);
    }
    return false;
}

bool is_device(const RootEntry& entry) noexcept {
    return entry.kind == Kind::device;
}

const char* change_root(const Confinement& confinement) noexcept {
    const char* top = confinement.mount_point.c_str();
    if (::unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS) != 0) return "make namespaces for it";
    if (::mount(nullptr, "/", nullptr, MS_SLAVE | MS_REC, nullptr) != 0)
        return "make the mounts its own";
    if (::mount("qvm", top, "tmpfs", MS_NOSUID, "mode=755") != 0 || ::chdir(top) != 0)
        return "mount its root directory";
    const ::mode_t mask = ::umask(0);
    for (const auto& entry : confinement.root)
        if (!is_device(entry) && !add(entry, confinement)) return entry.path.c_str();
    for (const auto& entry : confinement.root)
        if (is_device(entry) && !add(entry, confinement)) return entry.path.c_str();
    ::umask(mask);
    // pivot_root(2): the old root is then what is mounted over the new one.
    if (::syscall(SYS_pivot_root, ".", ".") != 0) return "change its root directory";
    if (::umount2(".", MNT_DETACH) != 0) return "unmount the host's files";
    mount_attr read_only{};
    read_only.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID;
    if (::mount_setattr(AT_FDCWD, "/", AT_RECURSIVE, &read_only, sizeof read_only) != 0)
        return "make its files read-only";
    return nullptr;
}

/// That capability, and no other, is the program's, too.
const char* take_along(unsigned capability) noexcept {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, 2> sets{};
    auto& set = sets[capability / 32];
    set.effective = set.permitted = set.inheritable = 1U << (capability % 32);
    if (::syscall(SYS_capset, &header, sets.data()) != 0 ||
        ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0)
        return "keep a capability";
    return nullptr;
}

/// By the bare system calls: libc's would tell our other threads, whose memory this is.
const char* change_user(const Confinement& confinement) noexcept {
    const auto gid = confinement.gid;
    const auto uid = *confinement.uid;
    const auto& groups = confinement.groups;
    if (groups && ::syscall(SYS_setgroups, groups->size(), groups->data()) != 0)
        return "set its groups";
    if (::syscall(SYS_setresgid, gid, gid, gid) != 0) return "set its group";
    const bool keeps = confinement.kept_capability >= 0;
    if (keeps && ::prctl(PR_SET_KEEPCAPS, 1) != 0) return "keep a capability";
    if (::syscall(SYS_setresuid, uid, uid, uid) != 0) return "set its user";
    return keeps ? take_along(static_cast<unsigned>(confinement.kept_capability)) : nullptr;
}

/// All but `kept`.
const char* drop_capabilities(int kept) noexcept {
    // Without the bounding set root's exec gives none back; see capabilities(7).
    for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability) >= 0; ++capability)
        if (capability != kept && ::prctl(PR_CAPBSET_DROP, capability) != 0 && errno != EPERM)
            return "drop its capabilities";
    return nullptr;
}

const char* limit(const Limits& limits) noexcept {
    const auto set = [](auto resource, std::uint64_t most) {
        rlimit both{};
        if (::getrlimit(resource, &both) != 0) return false;
        both.rlim_cur = both.rlim_max = std::min<rlim_t>(most, both.rlim_max);  // ours may be less
        return ::setrlimit(resource, &both) == 0;
    };
    const bool all = set(RLIMIT_DATA, limits.memory) && set(RLIMIT_FSIZE, limits.file_size) &&
                     set(RLIMIT_CPU, static_cast<std::uint64_t>(limits.cpu.count())) &&
                     set(RLIMIT_CORE, 0);
    return all ? nullptr : "limit it";
}

const char* restrict_opens(int rules) noexcept {
    if (::syscall(SYS_landlock_restrict_self, rules, 0U) != 0) return "restrict what it opens";
    ::close(rules);
    return nullptr;
}

}  // namespace

std::vector<MappedIds> parse_id_map(std::string_view text) {
    std::vector<MappedIds> ids;
    std::istringstream words{std::string{text}};
    MappedIds range;
    std::uint64_t outside = 0;
    while (words >> range.first >> outside >> range.count) ids.push_back(range);
    return ids;
}

std::optional<uid_t> throw_away_id(std::uint32_t vm, const std::vector<MappedIds>& uids,
                                   const std::vector<MappedIds>& gids) {
    if (is_mapped(uids, first_unused_id, unused_ids) &&
        is_mapped(gids, first_unused_id, unused_ids))
        return first_unused_id + vm % unused_ids;
    // The upper half of the largest range: accounts, if there are any, have the low ids.
    MappedIds best;
    for (const auto& range : uids)
        if (range.count > best.count && is_mapped(gids, range.first, range.count)) best = range;
    if (best.count < 2) return std::nullopt;
    const auto half = best.count / 2;
    return static_cast<uid_t>(best.first + best.count - half + vm % half);
}

std::optional<uid_t> throw_away_id(std::uint32_t vm) {
    const auto ids = [](const char* path) {
        const auto text = read_file(path);
        if (!text)
            throw Failure(
                fmt::format("read '{}': {}", path, std::generic_category().message(errno)));
        return parse_id_map(*text);
    };
    return throw_away_id(vm, ids("/proc/self/uid_map"), ids("/proc/self/gid_map"));
}

std::vector<gid_t> groups_of(const std::vector<std::string>& devices) {
    std::vector<gid_t> groups;
    constexpr mode_t of_group = S_IRGRP | S_IWGRP;
    constexpr mode_t of_others = S_IROTH | S_IWOTH;
    for (const auto& device : devices) {
        struct stat status {};
        if (::stat(device.c_str(), &status) != 0 || status.st_gid == 0) continue;
        if ((status.st_mode & of_group) != of_group) continue;
        if ((status.st_mode & of_others) != of_others) groups.push_back(status.st_gid);
    }
    return groups;
}

Confinement as_account(const std::string& user, bool privileged) {
    const auto* account = ::getpwnam(user.c_str());
    unsigned number = 0;
    const auto* end = user.data() + user.size();
    if (account == nullptr && std::from_chars(user.data(), end, number).ptr == end)
        account = ::getpwuid(number);
    if (account == nullptr) throw Failure(fmt::format("--qemu-user '{}': no such account", user));
    Confinement confinement;
    confinement.keep_capabilities = account->pw_uid == 0;
    if (account->pw_uid == ::geteuid()) return confinement;
    if (!privileged) throw Failure(fmt::format("--qemu-user '{}': needs root", user));
    confinement.uid = account->pw_uid;
    confinement.gid = account->pw_gid;
    int count = 0;
    ::getgrouplist(account->pw_name, account->pw_gid, nullptr, &count);
    auto& groups = confinement.groups.emplace(static_cast<std::size_t>(count));
    if (::getgrouplist(account->pw_name, account->pw_gid, groups.data(), &count) < 0)
        throw Failure(fmt::format("--qemu-user '{}': its groups have changed", user));
    return confinement;
}

std::vector<RootEntry> root_for(const fs::path& program, const std::vector<fs::path>& files,
                                const std::vector<std::string>& devices) {
    std::vector<RootEntry> entries;
    std::vector<fs::path> covered;
    const auto add_if_uncovered = [&](const fs::path& path, const auto& make) {
        for (const auto& directory : covered)
            if (is_within(behind_links(path, entries), directory)) return;
        const std::optional<RootEntry> entry = make(path);
        if (!entry) return;
        entries.push_back(*entry);
        if (entry->kind == Kind::bind) covered.push_back(path);
    };
    for (const char* path : system_paths) add_if_uncovered(path, entry_of);
    add_if_uncovered(home_of(program), entry_of);
    for (const auto& file : files)
        add_if_uncovered(file,
                         [](const fs::path& path) { return std::optional{entry_of_file(path)}; });
    for (const auto& device : devices)
        entries.push_back({Kind::device, fs::path{device}.relative_path().string(), device});
    return with_directories(entries);
}

UniqueFd allowed_opens(const fs::path& program, const std::vector<int>& reads,
                       const std::vector<int>& writes) {
    const auto version =
        ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1) return {};
    constexpr std::uint64_t may_read = LANDLOCK_ACCESS_FS_READ_FILE;
    std::uint64_t may_write = may_read | LANDLOCK_ACCESS_FS_WRITE_FILE;
    landlock_ruleset_attr handled{};
    // All that the first version has.
    handled.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;
    if (version >= refer_version) handled.handled_access_fs |= LANDLOCK_ACCESS_FS_REFER;
    if (version >= truncate_version) {
        handled.handled_access_fs |= may_truncate;
        may_write |= may_truncate;
    }
    UniqueFd rules{
        static_cast<int>(::syscall(SYS_landlock_create_ruleset, &handled, sizeof handled, 0U))};
    if (!rules) throw cannot_restrict("make a ruleset");
    constexpr std::uint64_t may_run =
        LANDLOCK_ACCESS_FS_EXECUTE | may_read | LANDLOCK_ACCESS_FS_READ_DIR;
    for (const char* path : system_paths) allow_path(rules.get(), path, may_run);
    allow_path(rules.get(), home_of(program), may_run);
    allow_path(rules.get(), "/dev/null", may_write);
    allow_path(rules.get(), "/dev/urandom", may_read);
    for (const int fd : reads) allow(rules.get(), fd, may_read);
    for (const int fd : writes) allow(rules.get(), fd, may_write);
    return rules;
}

std::vector<RootEntry> with_directories(const std::vector<RootEntry>& entries) {
    std::vector<RootEntry> result;
    std::set<std::string> made;
    for (const auto& entry : entries) {
        fs::path directory;
        for (const auto& part : fs::path{entry.path}.parent_path()) {
            directory /= part;
            if (made.insert(directory.string()).second)
                result.push_back({Kind::directory, directory.string()});
        }
        if (made.insert(entry.path).second) result.push_back(entry);
    }
    return result;
}

const char* confine(const Confinement& confinement) noexcept {
    if (confinement.own_network && ::unshare(CLONE_NEWNET) != 0)
        return "make a network namespace for it";
    if (!confinement.mount_point.empty())
        if (const char* failed = change_root(confinement)) return failed;
    if (!confinement.keep_capabilities)
        if (const char* failed = drop_capabilities(confinement.kept_capability)) return failed;
    if (confinement.uid)
        if (const char* failed = change_user(confinement)) return failed;
    if (confinement.limits)
        if (const char* failed = limit(*confinement.limits)) return failed;
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return "keep it from more privileges";
    if (confinement.allowed_opens >= 0)
        if (const char* failed = restrict_opens(confinement.allowed_opens)) return failed;
    if (confinement.keeps_to_itself && !keep_to_itself()) return "keep it to itself";
    return nullptr;
}

}  // namespace qvm
