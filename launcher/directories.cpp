#include "launcher/directories.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <system_error>
#include <thread>

#include "launcher/failure.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

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

fs::path data_directory() {
    if (auto path = from_environment("QVM_DATA_DIR"); !path.empty()) return path;
    if (::geteuid() == 0) return "/var/lib/qvm";
    if (auto path = from_environment("XDG_DATA_HOME"); !path.empty()) return path / "qvm";
    if (auto home = from_environment("HOME"); !home.empty()) return home / ".local/share/qvm";
    throw Failure("find the data directory: HOME is not set", "set QVM_DATA_DIR");
}

fs::path cache_directory() {
    if (auto path = from_environment("QVM_CACHE_DIR"); !path.empty()) return path;
    if (::geteuid() == 0) return "/var/cache/qvm";
    if (auto path = from_environment("XDG_CACHE_HOME"); !path.empty()) return path / "qvm";
    if (auto home = from_environment("HOME"); !home.empty()) return home / ".cache/qvm";
    throw Failure("find the cache directory: HOME is not set", "set QVM_CACHE_DIR");
}

/// A directory, not a link to one, that belongs to us.
bool is_our_directory(const fs::path& path) {
    struct stat status {};
    const bool found = ::lstat(path.c_str(), &status) == 0;
    if (!found && errno != ENOENT && errno != ENOTDIR)
        throw Failure(fmt::format("look at '{}': {}", path.string(), reason()));
    return found && S_ISDIR(status.st_mode) && status.st_uid == ::geteuid();
}

UniqueFd open_lock(const fs::path& file, int create) {
    return UniqueFd{::open(file.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | create, 0600)};
}

/// Whether the file or directory of this descriptor has still a name.
bool is_linked(int fd) {
    struct stat status {};
    return ::fstat(fd, &status) == 0 && status.st_nlink > 0;
}

/// Open file description locks, since those can be asked for without being taken.
struct flock whole_file(short type) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    return lock;
}

bool take_lock(int fd, short type = F_WRLCK) {
    auto lock = whole_file(type);
    return ::fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/// Throws Failure: who cannot look must not take it for free, nor its holder for dead.
bool is_locked(int fd, const fs::path& file) {
    auto lock = whole_file(F_WRLCK);
    if (::fcntl(fd, F_OFD_GETLK, &lock) != 0)
        throw Failure(fmt::format("look who has '{}': {}", file.string(), reason()));
    return lock.l_type != F_UNLCK;
}

constexpr std::array vm_files{
    "console.log",     "console.log.1",  "console.sock",    "control.sock", "exec.sock",
    "dhcp-hosts",      "dhcp-hosts.new", "hosts",           "hosts.new",    "known_hosts",
    "known_hosts.old", "resolv.conf",    "resolv.conf.new", "state.json",   "state.json.new",
    "ssh-users",       "ssh-users.new",  "volume.sock",     "lock"};

}  // namespace

Directories find_directories() {
    return {run_directory(), data_directory(), cache_directory()};
}

std::string random_id() {
    std::uint32_t number = 0;
    if (::getrandom(&number, sizeof number, 0) != sizeof number)
        throw Failure("read random numbers: " + reason());
    return fmt::format("{:08x}", number);
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
        throw Failure(fmt::format("directory '{}': belongs to somebody else", path.string()));
}

namespace {

UniqueFd lock_directory(const fs::path& path, int operation) {
    const auto what = fmt::format("lock '{}'", path.string());
    for (;;) {
        make_private_directory(path);
        UniqueFd fd{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
        if (!fd && errno == ENOENT) continue;  // removed since
        if (!fd || ::flock(fd.get(), operation) != 0) {
            if (fd && errno == EWOULDBLOCK) return {};
            throw Failure(fmt::format("{}: {}", what, reason()));
        }
        if (is_linked(fd.get())) return fd;
    }
}

}  // namespace

UniqueFd lock_directory(const fs::path& path) {
    return lock_directory(path, LOCK_EX);
}

UniqueFd try_lock_directory(const fs::path& path) {
    return lock_directory(path, LOCK_EX | LOCK_NB);
}

UniqueFd lock_soon(const fs::path& directory) {
    constexpr int most_tries = 100;
    constexpr std::chrono::milliseconds pause{1};
    UniqueFd fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
    for (int tries = 0; fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
        if (tries == most_tries) return {};
        std::this_thread::sleep_for(pause);
    }
    if (fd && !is_linked(fd.get())) fd.reset();  // who had it has removed it
    return fd;
}

std::optional<UniqueFd> try_lock_file(const fs::path& file) {
    for (;;) {
        auto fd = open_lock(file, O_CREAT);
        if (!fd) throw Failure(fmt::format("lock '{}': {}", file.string(), reason()));
        const bool taken = take_lock(fd.get());
        if (!taken && errno != EAGAIN && errno != EACCES)
            throw Failure(fmt::format("lock '{}': {}", file.string(), reason()));
        if (!taken) return std::nullopt;
        if (is_linked(fd.get())) return fd;
    }
}

UniqueFd try_lock_existing(const fs::path& file) {
    auto fd = open_lock(file, 0);
    if (fd && (!take_lock(fd.get()) || !is_linked(fd.get()))) fd.reset();
    return fd;
}

UniqueFd share_lock_existing(const fs::path& file) {
    auto fd = open_lock(file, 0);
    if (fd && (!take_lock(fd.get(), F_RDLCK) || !is_linked(fd.get()))) fd.reset();
    return fd;
}

void share_lock(const UniqueFd& lock) {
    if (!take_lock(lock.get(), F_RDLCK)) throw Failure("share a lock: " + reason());
}

bool unshare_lock(const UniqueFd& lock) {
    return take_lock(lock.get());
}

void write_file(const fs::path& path, const std::string& text, bool durable) {
    const auto what = fmt::format("write '{}'", path.string());
    const auto fresh = path.string() + ".new";
    ::unlink(fresh.c_str());
    const UniqueFd fd{
        ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
    const auto failed = [&] {
        const auto why = reason();
        if (fd) ::unlink(fresh.c_str());
        return Failure(fmt::format("{}: {}", what, why));
    };
    if (!fd) throw failed();
    if (!write_all(fd.get(), text)) throw failed();
    if (durable && ::fsync(fd.get()) != 0) throw failed();
    if (::rename(fresh.c_str(), path.c_str()) != 0) throw failed();
}

bool write_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        const auto size = ::write(fd, bytes.data(), bytes.size());
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return false;
        bytes.remove_prefix(static_cast<std::size_t>(size));
    }
    return true;
}

void sync_directory(const fs::path& path) {
    const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    ::fsync(fd.get());
}

std::optional<std::string> read_file(const fs::path& path) {
    const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd) return std::nullopt;
    std::string text;
    std::array<char, 16384> buffer;
    for (;;) {
        const auto size = ::read(fd.get(), buffer.data(), buffer.size());
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) return std::nullopt;
        if (size == 0) return text;
        text.append(buffer.data(), static_cast<std::size_t>(size));
    }
}

std::optional<fs::path> foreign_file(const fs::path& directory,
                                     std::span<const char* const> names) {
    std::error_code error;
    for (fs::directory_iterator entry{directory, error}, end; !error && entry != end;
         entry.increment(error))
        if (std::find(names.begin(), names.end(), entry->path().filename()) == names.end())
            return entry->path();
    // What cannot be looked at is not ours to touch.
    return error ? std::optional{directory} : std::nullopt;
}

bool remove_directory(const fs::path& directory, std::span<const char* const> names) {
    if (foreign_file(directory, names)) return false;
    // In their order: the last is the lock, by which a sweep knows what is left.
    for (const char* name : names)
        if (::unlink((directory / name).c_str()) != 0 && errno != ENOENT) return false;
    return ::rmdir(directory.c_str()) == 0;
}

std::vector<fs::path> directories_in(const fs::path& directory) {
    std::vector<fs::path> result;
    if (!is_our_directory(directory)) return result;
    std::error_code error;
    fs::directory_iterator entry{directory, error};
    for (; !error && entry != fs::directory_iterator{}; entry.increment(error))
        if (is_our_directory(entry->path())) result.push_back(entry->path());
    if (error && error != std::errc::no_such_file_or_directory)
        throw Failure(fmt::format("read directory '{}': {}", directory.string(), error.message()));
    return result;
}

namespace {

/// Whether there is a lock that nobody holds, or nothing at all: who was killed between two calls
/// had no lock yet, or none any more.
bool is_dead(const fs::path& directory) {
    const auto file = directory / "lock";
    if (const auto lock = open_lock(file, 0)) return !is_locked(lock.get(), file);
    std::error_code error;
    return fs::is_empty(directory, error) && !error;
}

}  // namespace

std::vector<std::string> sweep_vms(const fs::path& run, const BeforeRemoval& before) {
    std::vector<std::string> names;
    const auto directories = directories_in(run);
    // Those who start and end just now are not held up where there is nothing to do.
    if (std::none_of(directories.begin(), directories.end(), is_dead)) return names;
    const auto guard = lock_directory(run);
    for (const auto& directory : directories) {
        auto name = directory.filename().string();
        if (name.starts_with('.')) continue;
        if (::rmdir(directory.c_str()) == 0) continue;  // it was empty
        const auto lock = try_lock_existing(directory / "lock");
        if (!lock || foreign_file(directory, vm_files)) continue;
        before(name, directory);
        if (remove_directory(directory, vm_files)) names.push_back(std::move(name));
    }
    return names;
}

std::optional<pid_t> supervisor_of(const fs::path& run, const std::string& name) {
    const auto file = run / name / "lock";
    const auto fd = open_lock(file, 0);
    if (!fd && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
        throw Failure(fmt::format("open '{}': {}", file.string(), reason()));
    if (!fd || !is_locked(fd.get(), file)) return std::nullopt;
    std::array<char, 32> text{};
    const auto size = ::pread(fd.get(), text.data(), text.size() - 1, 0);
    if (size < 0) throw Failure(fmt::format("read '{}': {}", file.string(), reason()));
    const int pid = std::atoi(text.data());
    return pid > 0 ? std::optional{pid} : std::nullopt;
}

std::vector<std::string> living_vms(const fs::path& run) {
    std::vector<std::string> names;
    for (const auto& directory : directories_in(run)) {
        auto name = directory.filename().string();
        if (supervisor_of(run, name)) names.push_back(std::move(name));
    }
    std::sort(names.begin(), names.end());
    return names;
}

VmDirectory::VmDirectory(const fs::path& run, const std::string& name) : path_(run / name) {
    const auto guard = lock_directory(run);
    make_private_directory(path_);
    if (!is_our_directory(path_))
        throw Failure(fmt::format("create directory '{}': a link is in its place", path_.string()));
    auto lock = try_lock_file(path_ / "lock");
    if (!lock)
        throw Failure(fmt::format("VM '{}': is running already (pid {})", name,
                                  supervisor_of(run, name).value_or(0)));
    const auto pid = std::to_string(::getpid());
    if (::ftruncate(lock->get(), 0) == 0 &&
        ::pwrite(lock->get(), pid.data(), pid.size(), 0) == static_cast<ssize_t>(pid.size())) {
        lock_ = std::move(*lock);
        return;
    }
    const auto why = reason();
    remove_directory(path_, vm_files);
    throw Failure(fmt::format("write '{}': {}", (path_ / "lock").string(), why));
}

VmDirectory::~VmDirectory() {
    if (!lock_) return;  // moved from
    try {
        // Who takes the name next finds all of it or nothing. It is removed all the same where
        // others have that lock for long.
        const UniqueFd guard = lock_soon(path_.parent_path());
        remove_directory(path_, vm_files);
    } catch (const std::exception&) {
        // It is left to the next sweep.
    }
    lock_.reset();
}

}  // namespace qvm
