#include "netns/forwarding.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <net/if.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <thread>

#include "netns/error.h"

namespace qvm::netns {

namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr milliseconds lock_pause{1};
// With one who is stopped, or slow, in the middle of taking a lease.
constexpr milliseconds sweep_patience{1000};

using Family = ForwardingLease::Family;
constexpr std::string_view ipv6_mark = "-ipv6";  // in a lease's name

std::string setting_path(const std::string& interface, Family family) {
    if (family == Family::ipv4)
        return fmt::format("/proc/sys/net/ipv4/conf/{}/forwarding", interface);
    return fmt::format("/proc/sys/net/ipv6/conf/{}/{}", interface,
                       interface == "all" ? "forwarding" : "force_forwarding");
}

void write_setting(const std::string& interface, Family family, char value) {
    const auto path = setting_path(interface, family);
    const auto step = fmt::format("set '{}' to {}", path, value);
    UniqueFd fd{check(::open(path.c_str(), O_WRONLY | O_CLOEXEC), step)};
    check(static_cast<int>(::write(fd.get(), &value, 1)), step);
}

char read_setting(const std::string& interface, Family family) {
    const auto path = setting_path(interface, family);
    const auto step = fmt::format("read '{}'", path);
    UniqueFd fd{check(::open(path.c_str(), O_RDONLY | O_CLOEXEC), step)};
    char value = '0';
    check(static_cast<int>(::read(fd.get(), &value, 1)), step);
    return value;
}

/// Interfaces of different namespaces share indexes; the file's name carries the namespace's inode.
std::string namespace_suffix() {
    struct stat status {};
    check(::stat("/proc/thread-self/ns/net", &status), "read '/proc/thread-self/ns/net'");
    return fmt::format("@{}", status.st_ino);
}

std::string lease_name(unsigned index, Family family) {
    return fmt::format("{}{}{}", index, family == Family::ipv6 ? ipv6_mark : "",
                       namespace_suffix());
}

Family family_of(const fs::path& lease) {
    const bool ipv6 = lease.filename().string().find(ipv6_mark) != std::string::npos;
    return ipv6 ? Family::ipv6 : Family::ipv4;
}

/// 0 where there is no such interface.
unsigned index_of(const std::string& interface) {
    const auto index = ::if_nametoindex(interface.c_str());
    if (index == 0 && errno != ENODEV)
        throw Error(fmt::format("look for interface '{}'", interface), errno);
    return index;
}

/// What it is called now; nothing where it is gone.
std::optional<std::string> name_of(unsigned index) {
    std::array<char, IF_NAMESIZE> name{};
    if (::if_indextoname(index, name.data()) != nullptr) return name.data();
    if (errno != ENXIO) throw Error(fmt::format("look for interface {}", index), errno);
    return std::nullopt;
}

/// Held while leases are taken and given back, so that "who is first" and "who is last" are
/// decided one at a time. The kernel drops it with its holder.
UniqueFd lock_directory(const fs::path& directory, milliseconds patience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    const auto step = fmt::format("lock '{}'", directory.string());
    for (;;) {
        if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) check(-1, step);
        UniqueFd fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
        if (!fd && errno == ENOENT) continue;  // removed since
        check(fd.get(), step);
        while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() >= deadline)
                check(-1, step);
            std::this_thread::sleep_for(lock_pause);
        }
        struct stat status {};
        check(::fstat(fd.get(), &status), step);
        if (status.st_nlink > 0) return fd;
    }
}

/// Whether somebody has made a router of a host that was none when the lease began: what is off
/// then is off for them, too.
bool host_forwards_since(int fd, Family family) {
    char before = '1';
    return ::pread(fd, &before, 1, 0) == 1 && before == '0' && read_setting("all", family) == '1';
}

/// Puts the setting back and removes the file, if no other lease shares it; whether it did. The
/// directory's lock must be held, and from before `fd` was opened where that is not a lease of
/// ours.
bool release(const fs::path& file, unsigned index, int fd) {
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return false;
    // The interface may be gone by now; then there is nothing to put back.
    const auto interface = name_of(index);
    const auto family = family_of(file);
    // force_forwarding is nothing that a host has set by making it a router.
    if (interface && (family == Family::ipv6 || !host_forwards_since(fd, family)))
        write_setting(*interface, family, '0');
    ::unlink(file.c_str());
    ::rmdir(file.parent_path().c_str());  // when it was the last
    return true;
}

}  // namespace

void enable_forwarding(const std::string& interface) {
    write_setting(interface, Family::ipv4, '1');
}

void enable_forwarding6(const std::string& interface) {
    write_setting(interface, Family::ipv6, '1');
}

ForwardingLease::ForwardingLease(const fs::path& directory, const std::string& interface,
                                 milliseconds patience, Family family)
    : family_(family), index_(index_of(interface)), file_(directory / lease_name(index_, family)) {
    const auto guard = lock_directory(directory, patience);
    const bool off = read_setting(interface, family) == '0';
    // On, and not by a lease: nothing to put back.
    if (!off && !fs::exists(file_)) {
        ::rmdir(directory.c_str());
        return;
    }
    const auto step = fmt::format("lock '{}'", file_.string());
    lock_.reset(check(::open(file_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), step));
    check(::flock(lock_.get(), LOCK_SH), step);
    if (!off) return;
    // The file is there before the setting changes, so that a kill in between is swept as well.
    const char all = read_setting("all", family);
    check(static_cast<int>(::pwrite(lock_.get(), &all, 1, 0)), step);
    write_setting(interface, family, '1');
}

ForwardingLease::~ForwardingLease() {
    if (!lock_) return;
    try {
        const auto guard = lock_directory(file_.parent_path(), default_patience);
        release(file_, index_, lock_.get());
    } catch (const std::exception&) {
        // Left to the next sweep.
    }
}

bool ForwardingLease::is_on(const std::string& interface) const {
    return index_of(interface) == index_ && read_setting(interface, family_) == '1';
}

bool ForwardingLease::is_borrowed() const {
    return lock_ && !host_forwards_since(lock_.get(), family_);
}

void ForwardingLeases::hold(const std::vector<std::string>& interfaces, milliseconds patience) {
    for (const auto& interface : interfaces) {
        const auto held = leases_.find(interface);
        try {
            if (held != leases_.end() && held->second.is_on(interface)) continue;
            ForwardingLease lease{directory_, interface, patience, family_};
            leases_.erase(interface);  // after the new one: somebody has it all the time
            leases_.emplace(interface, std::move(lease));
        } catch (const Error& error) {
            if (error.error() != ENOENT && error.error() != ENODEV) throw;
        }
    }
    std::erase_if(leases_, [&](const auto& held) {
        return std::ranges::find(interfaces, held.first) == interfaces.end();
    });
}

std::vector<std::string> ForwardingLeases::borrowed() const {
    std::vector<std::string> interfaces;
    for (const auto& [interface, lease] : leases_)
        if (lease.is_borrowed()) interfaces.push_back(interface);
    return interfaces;
}

std::vector<std::string> sweep_forwarding(const fs::path& directory) {
    std::vector<std::string> interfaces;
    std::error_code ignored;
    if (!fs::is_directory(fs::symlink_status(directory, ignored))) return interfaces;
    const auto guard = lock_directory(directory, sweep_patience);
    const auto suffix = namespace_suffix();
    for (const auto& entry : fs::directory_iterator(directory, ignored)) {
        const auto name = entry.path().filename().string();
        unsigned index = 0;
        std::from_chars(name.data(), name.data() + name.size(), index);
        if (!name.ends_with(suffix) || index == 0) continue;
        try {
            UniqueFd fd{check(::open(entry.path().c_str(), O_RDWR | O_CLOEXEC), "open")};
            auto interface = name_of(index);
            if (release(entry.path(), index, fd.get()) && interface)
                interfaces.push_back(std::move(*interface));
        } catch (const Error&) {
            // Somebody else was faster, or it cannot be written: the next sweep tries again.
        }
    }
    ::rmdir(directory.c_str());
    return interfaces;
}

bool is_forwarding_leased(const fs::path& directory, const std::string& interface) {
    const auto file = directory / lease_name(index_of(interface), Family::ipv4);
    std::error_code ignored;
    if (!fs::exists(file, ignored)) return false;
    // Leases come and go under this lock alone: nobody takes ours for one.
    const auto guard = lock_directory(directory, sweep_patience);
    const UniqueFd fd{::open(file.c_str(), O_RDWR | O_CLOEXEC)};
    const bool leased = fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 &&
                        !host_forwards_since(fd.get(), Family::ipv4);
    ::rmdir(directory.c_str());  // when the last went meanwhile
    return leased;
}

}  // namespace qvm::netns
