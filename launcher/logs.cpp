#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <system_error>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/definition.h"
#include "launcher/directories.h"
#include "launcher/output.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

UniqueFd open_log(const fs::path& path) {
    return UniqueFd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
}

void print_rest(int fd) {
    std::array<char, 65536> buffer;
    for (;;) {
        const auto size = ::read(fd, buffer.data(), buffer.size());
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return;
        print({buffer.data(), static_cast<std::size_t>(size)});
    }
}

bool is_same_file(int fd, const fs::path& path) {
    struct stat ours {
    }, theirs{};
    return ::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &theirs) == 0 &&
           ours.st_ino == theirs.st_ino;
}

/// A log that grows, is rotated, and goes with its VM.
class Follower {
  public:
    Follower(const fs::path& directory, pid_t supervisor)
        : path_(directory / "console.log"),
          supervisor_(static_cast<int>(::syscall(SYS_pidfd_open, supervisor, 0U))),
          changes_(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) {
        if (!changes_ || ::inotify_add_watch(changes_.get(), directory.c_str(),
                                             IN_MODIFY | IN_CREATE | IN_DELETE | IN_MOVED_TO) < 0)
            throw Failure(fmt::format("watch '{}': {}", directory.string(),
                                      std::generic_category().message(errno)));
    }

    void operator()() {
        for (;;) {
            const bool over = wait();
            print_news();
            if (over) return;
        }
    }

    void print_news() {
        if (log_) print_rest(log_.get());
        if (log_ && is_same_file(log_.get(), path_)) return;
        auto next = open_log(path_);
        if (!next) return;
        log_ = std::move(next);
        print_rest(log_.get());
    }

  private:
    /// Until something changed; whether the supervisor is gone.
    bool wait() {
        // Of stdout, only that its reader is gone: a guest may never print again.
        std::array<pollfd, 3> fds{
            {{changes_.get(), POLLIN, 0}, {supervisor_.get(), POLLIN, 0}, {STDOUT_FILENO, 0, 0}}};
        ::poll(fds.data(), fds.size(), -1);
        if (fds[2].revents != 0) end_without_reader();
        std::array<char, 4096> ignored;
        while (::read(changes_.get(), ignored.data(), ignored.size()) > 0) {
        }
        return !supervisor_ || fds[1].revents != 0;
    }

    fs::path path_;
    UniqueFd log_;
    UniqueFd supervisor_;
    UniqueFd changes_;
};

}  // namespace

int logs(const LogsOptions& options) {
    const auto directories = find_directories();
    const auto pid = supervisor_of(directories.run, options.name);
    const DefinitionStore store{directories};
    // What is over is kept for VMs that were created.
    const auto directory = pid ? directories.run / options.name : store.path(options.name);
    if (!pid && !store.exists(options.name)) throw not_running(directories, options.name);
    std::optional<Follower> follower;
    if (options.follow && pid) follower.emplace(directory, *pid);
    if (const auto older = open_log(directory / "console.log.1")) print_rest(older.get());
    if (follower) {
        follower->print_news();
        (*follower)();
    } else if (const auto log = open_log(directory / "console.log")) {
        print_rest(log.get());
    }
    return status::ok;
}

}  // namespace qvm
