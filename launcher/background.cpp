#include "launcher/background.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/output.h"

namespace qvm {

namespace {

constexpr const char* detached = "d";  // before the text to print

std::string read_all(int fd) {
    std::string text;
    std::array<char, 256> buffer;
    for (;;) {
        const auto size = ::read(fd, buffer.data(), buffer.size());
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return text;
        text.append(buffer.data(), static_cast<std::size_t>(size));
    }
}

sigset_t minded_signals() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGCHLD}) ::sigaddset(&set, number);
    return set;
}

/// What became of the child: an exit status as the shell has it; nothing while it lives.
std::optional<int> look_after(pid_t child) {
    int status = 0;
    if (::waitpid(child, &status, WNOHANG | WUNTRACED) != child) return std::nullopt;
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    if (WIFSIGNALED(status)) return status::signalled + WTERMSIG(status);
    // The shell is to see a stopped job; its SIGCONT goes to the whole group.
    ::raise(SIGSTOP);
    return std::nullopt;
}

/// The terminal's own signals reach the child as they reach us; what somebody sent to our pid is
/// passed on.
void pass_on(int signals, pid_t child) {
    signalfd_siginfo info{};
    if (::read(signals, &info, sizeof info) != sizeof info) return;
    const int number = static_cast<int>(info.ssi_signo);
    if (number != SIGCHLD && info.ssi_code == SI_USER) ::kill(child, number);
}

Failure cannot(const char* call) {
    return Failure{fmt::format("make a process for the background: {}: {}", call,
                               std::generic_category().message(errno))};
}

/// The parent's whole life.
int stand_in_for(pid_t child, int signals, int from_child) {
    for (;;) {
        std::array<pollfd, 2> fds{{{signals, POLLIN, 0}, {from_child, POLLIN, 0}}};
        if (::poll(fds.data(), fds.size(), -1) < 0) continue;
        if (fds[0].revents != 0) pass_on(signals, child);
        if (const auto status = look_after(child)) return *status;
        if ((fds[1].revents & POLLIN) == 0) continue;
        const auto text = read_all(from_child);
        if (text.empty()) continue;  // it could not be read, and is still there
        print(std::string_view{text}.substr(1));
        return status::ok;
    }
}

}  // namespace

std::optional<int> Background::fork() {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw cannot("make a pipe");
    UniqueFd read_end{ends[0]};
    UniqueFd write_end{ends[1]};
    const auto signals = minded_signals();
    const UniqueFd signal_fd{::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)};
    if (!signal_fd) throw cannot("make a signalfd");
    sigset_t before;
    ::sigprocmask(SIG_BLOCK, &signals, &before);
    const auto parent = ::getpid();
    const auto child = ::fork();
    if (child < 0) throw cannot("fork");
    if (child > 0) {
        write_end.reset();
        return stand_in_for(child, signal_fd.get(), read_end.get());
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(status::failed);
    read_end.reset();
    to_parent_ = std::move(write_end);
    // Whatever the user's shell left open is to be closed when the user thinks it is.
    const auto mine = static_cast<unsigned>(to_parent_.get());
    if (mine > 3) ::syscall(SYS_close_range, 3U, mine - 1, 0U);
    ::syscall(SYS_close_range, mine + 1, ~0U, 0U);
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    return std::nullopt;
}

void Background::detach(const std::string& text) noexcept {
    if (!to_parent_) return;
    ::prctl(PR_SET_PDEATHSIG, 0);
    [[maybe_unused]] const int moved = ::chdir("/");  // not to hold the user's file system
    ::setsid();
    const UniqueFd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) ::dup2(null.get(), fd);
    // A parent that is gone has nobody to tell.
    const auto message = detached + text;
    [[maybe_unused]] const auto size = ::write(to_parent_.get(), message.data(), message.size());
    to_parent_.reset();
}

}  // namespace qvm
