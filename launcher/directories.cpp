#include "launcher/directories.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <system_error>

#include "launcher/failure.h"
#include "netns/forwarding.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

std::string reason() {
    return std::generic_category().message(errno);
}

/// The variable's value as an absolute path, or nothing.
fs::path from_environment(const char* variable) {
    const char* value = ::getenv(variable);
    if (value == nullptr || *value == '\0') return {};
    const auto path = fs::absolute(value).lexically_normal();
    return path.has_filename() ? path : path.parent_path();  // without a slash at the end
}

fs::path run_directory() {
    if (auto path = from_environment("QVM_RUN_DIR"); !path.empty()) return path;
    if (::geteuid() == 0) return "/run/qvm";
    if (auto path = from_environment("XDG_RUNTIME_DIR"); !path.empty()) return path / "qvm";
    return fmt::format("/tmp/qvm-{}", ::geteuid());
}

fs::path cache_directory() {
    if (auto path = from_environment("QVM_CACHE_DIR"); !path.empty()) return path;
    if (::geteuid() == 0) return "/var/cache/qvm";
    if (auto path = from_environment("XDG_CACHE_HOME"); !path.empty()) return path / "qvm";
    if (auto home = from_environment("HOME"); !home.empty()) return home / ".cache/qvm";
    throw Failure("find the cache directory: HOME is not set", "set QVM_CACHE_DIR");
}

/// Held while VMs' directories are made and swept: one at a time, and never for long.
UniqueFd lock_all(const fs::path& directory) {
    UniqueFd fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
    if (!fd || ::flock(fd.get(), LOCK_EX) != 0)
        throw Failure(fmt::format("lock '{}': {}", directory.string(), reason()));
    return fd;
}

/// Takes the lock of a VM's directory; nothing while somebody else has it, or without O_CREAT in
/// `create` where there is none.
UniqueFd try_lock(const fs::path& directory, int create) {
    const auto file = directory / "lock";
    UniqueFd fd{::open(file.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | create, 0600)};
    if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) fd.reset();
    return fd;
}

/// A directory, not a link to one, that belongs to us.
bool is_our_directory(const fs::path& path) {
    struct stat status {};
    return ::lstat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) &&
           status.st_uid == ::geteuid();
}

std::string pid_in(const fs::path& lock) {
    const UniqueFd fd{::open(lock.c_str(), O_RDONLY | O_CLOEXEC)};
    std::array<char, 32> text{};
    const auto size = fd ? ::read(fd.get(), text.data(), text.size()) : 0;
    return size > 0 ? std::string{text.data(), static_cast<std::size_t>(size)} : "?";
}

/// Only what a supervisor makes: somebody may have pointed QVM_RUN_DIR at something else.
void remove_vm_directory(const fs::path& directory) {
    for (const char* name : {"console.log", "console.log.1", "lock"})
        ::unlink((directory / name).c_str());
    ::rmdir(directory.c_str());
}

}  // namespace

Directories find_directories() {
    return {run_directory(), cache_directory()};
}

void make_private_directory(const fs::path& path) {
    const auto what = fmt::format("create directory '{}'", path.string());
    std::error_code error;
    if (path.has_parent_path()) fs::create_directories(path.parent_path(), error);
    if (error) throw Failure(fmt::format("{}: {}", what, error.message()));
    if (::mkdir(path.c_str(), 0700) == 0) return;
    if (errno != EEXIST) throw Failure(fmt::format("{}: {}", what, reason()));
    // A link is followed only if nobody else can have put it there.
    struct stat link {
    }, status{};
    if (::lstat(path.c_str(), &link) != 0 || ::stat(path.c_str(), &status) != 0)
        throw Failure(fmt::format("{}: {}", what, reason()));
    if (!S_ISDIR(status.st_mode)) throw Failure(what + ": a file is in its place");
    const bool link_is_safe = link.st_uid == ::geteuid() || link.st_uid == 0;
    if (status.st_uid != ::geteuid() || !link_is_safe)
        throw Failure(what + ": it belongs to somebody else");
}

void sweep(const Directories& directories) {
    const auto vms = directories.run / "vm";
    const auto forwarding = directories.run / "forwarding";
    if (is_our_directory(forwarding)) netns::sweep_forwarding(forwarding);
    if (!is_our_directory(vms)) return;
    const auto guard = lock_all(vms);
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(vms, ignored))
        if (is_our_directory(entry.path()))
            if (const auto lock = try_lock(entry.path(), 0)) remove_vm_directory(entry.path());
}

VmDirectory::VmDirectory(const fs::path& run, const std::string& name) : path_(run / "vm" / name) {
    make_private_directory(run);
    make_private_directory(run / "forwarding");
    make_private_directory(run / "vm");
    const auto guard = lock_all(run / "vm");
    make_private_directory(path_);
    lock_ = try_lock(path_, O_CREAT);
    if (!lock_)
        throw Failure(fmt::format("--name '{}': is in use by a running VM (pid {})", name,
                                  pid_in(path_ / "lock")));
    const auto pid = std::to_string(::getpid());
    if (::ftruncate(lock_.get(), 0) != 0 ||
        ::pwrite(lock_.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
        throw Failure(fmt::format("write '{}': {}", (path_ / "lock").string(), reason()));
}

VmDirectory::~VmDirectory() {
    remove_vm_directory(path_);
}

}  // namespace qvm
