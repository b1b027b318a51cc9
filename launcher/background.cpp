#include "launcher/background.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/output.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace {

constexpr const char* detached = "d";  // before the text to print
constexpr const char* printed = "p";
constexpr int print_patience_ms = 1000;  // with whoever reads the parent's stdout

/// The next message; empty at the end, or where it cannot be read.
std::string receive(int fd) {
    std::array<char, 4096> buffer;
    ssize_t size = 0;
    do size = ::recv(fd, buffer.data(), buffer.size(), 0);
    while (size < 0 && errno == EINTR);
    return {buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
}

void send(int fd, const std::string& message) {
    [[maybe_unused]] const auto size = ::send(fd, message.data(), message.size(), MSG_NOSIGNAL);
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

constexpr const char* step = "make a process for the background";

Failure cannot(const char* call) {
    return Failure{fmt::format("{}: {}: {}", step, call, std::generic_category().message(errno))};
}

/// The parent's whole life. Where the text cannot be printed the child goes with us: nobody was
/// told of it.
int stand_in_for(pid_t child, int signals, int socket) {
    for (;;) {
        std::array<pollfd, 2> fds{{{signals, POLLIN, 0}, {socket, POLLIN, 0}}};
        if (::poll(fds.data(), fds.size(), -1) < 0) continue;
        if (fds[0].revents != 0) pass_on(signals, child);
        if (const auto status = look_after(child)) return *status;
        if ((fds[1].revents & POLLIN) == 0) continue;
        const auto text = receive(socket);
        if (text.empty()) {  // it could not be read and is still there, or the child ends
            if ((fds[1].revents & POLLHUP) != 0) socket = -1;
            continue;
        }
        print(std::string_view{text}.substr(1));
        send(socket, printed);
        (void)receive(socket);  // its end: the child does without us
        return status::ok;
    }
}

}  // namespace

std::optional<int> Background::fork() {
    auto [ours, childs] = make_socket_pair(step, SOCK_SEQPACKET);
    const auto signals = minded_signals();
    const UniqueFd signal_fd{::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)};
    if (!signal_fd) throw cannot("make a signalfd");
    sigset_t before;
    ::sigprocmask(SIG_BLOCK, &signals, &before);
    const auto parent = ::getpid();
    const auto child = ::fork();
    if (child < 0) throw cannot("fork");
    if (child > 0) {
        childs.reset();
        return stand_in_for(child, signal_fd.get(), ours.get());
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(status::failed);
    ours.reset();
    to_parent_ = std::move(childs);
    // Whatever the user's shell left open is to be closed when the user thinks it is.
    const auto mine = static_cast<unsigned>(to_parent_.get());
    if (mine > 3) ::syscall(SYS_close_range, 3U, mine - 1, 0U);
    ::syscall(SYS_close_range, mine + 1, ~0U, 0U);
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    return std::nullopt;
}

void Background::detach(const std::string& text) noexcept {
    if (!to_parent_) return;
    [[maybe_unused]] const int moved = ::chdir("/");  // not to hold the user's file system
    ::setsid();
    const UniqueFd null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) ::dup2(null.get(), fd);
    send(to_parent_.get(), detached + text);
    pollfd answer{to_parent_.get(), POLLIN, 0};
    int answers = 0;
    do answers = ::poll(&answer, 1, print_patience_ms);
    while (answers < 0 && errno == EINTR);
    // A parent that is gone, and has printed nothing, takes us along; its death is about to say so.
    if (answers > 0 && receive(to_parent_.get()).empty()) ::raise(SIGKILL);
    ::prctl(PR_SET_PDEATHSIG, 0);
    to_parent_.reset();
}

}  // namespace qvm
