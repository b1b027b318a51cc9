#include "launcher/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/granted_file.h"
#include "launcher/step.h"

namespace qvm {

namespace {

constexpr std::size_t child_stack_size = 64 * 1024;
constexpr int last_signal = 64;
// Of what a tool prints. Whatever it works on may make it print for ever.
constexpr std::size_t most_kept = 8 * 1024 * 1024;

rlimit saved_limit{};  ///< of descriptors, before it was raised

std::string reason(int error) {
    return std::generic_category().message(error);
}

/// What the child needs between vfork and exec, made before it: nothing may be allocated there.
struct Launch {
    const SpawnSpec& spec;
    std::string program;
    std::vector<char*> argv;
    pid_t parent;
    int error = 0;  ///< written by the child: errno of the call that failed
    const char* failed_call = nullptr;
    int granted_file = -1;  ///< where the child has SpawnSpec's
};

bool fail(Launch& launch, const char* call) {
    launch.error = errno;
    launch.failed_call = call;
    return false;
}

/// Signals as a program expects to find them; ours are handled or blocked.
void reset_signals() {
    for (int number = 1; number <= last_signal; ++number) ::signal(number, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

/// Puts every descriptor under its number. All are first copied out of the way, so that no target
/// overwrites a source that is still to come.
bool place_descriptors(Launch& launch) {
    const auto& spec = launch.spec;
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) return fail(launch, "open '/dev/null'");
    int last = 2;
    for (const auto& item : spec.inherit) last = std::max(last, item.as);
    if (spec.granted_file >= 0) ++last;
    constexpr std::size_t most = 600;
    std::array<SpawnSpec::Inherit, most> moved;
    std::size_t count = 0;
    const auto move = [&](int fd, int as) {
        moved[count].fd = ::fcntl(fd < 0 ? null : fd, F_DUPFD_CLOEXEC, last + 1);
        moved[count].as = as;
        return moved[count++].fd >= 0;
    };
    if (spec.inherit.size() + 4 > most) return errno = EMFILE, fail(launch, "pass descriptors");
    bool copied = move(spec.stdin_fd, 0) && move(spec.stdout_fd, 1) && move(spec.stderr_fd, 2);
    for (const auto& item : spec.inherit) copied = copied && move(item.fd, item.as);
    if (spec.granted_file >= 0) copied = copied && move(spec.granted_file, last);
    if (!copied) return fail(launch, "copy a descriptor");
    // Whatever else lies between is not the child's business.
    for (int fd = 3; fd <= last; ++fd) ::close(fd);
    for (std::size_t i = 0; i < count; ++i)
        if (::dup2(moved[i].fd, moved[i].as) < 0) return fail(launch, "pass a descriptor");
    launch.granted_file = last;
    if (::syscall(SYS_close_range, static_cast<unsigned>(last + 1), ~0U, 0U) != 0)
        return fail(launch, "close the other descriptors");
    return true;
}

bool prepare_child(Launch& launch) {
    reset_signals();
    if (saved_limit.rlim_max != 0) ::setrlimit(RLIMIT_NOFILE, &saved_limit);
    if (launch.spec.ignore_hangup) ::signal(SIGHUP, SIG_IGN);
    ::setsid();  // the terminal's signals are for us, who pass on what is meant for the guest
    const int network = launch.spec.network_namespace;
    if (network >= 0 && ::setns(network, CLONE_NEWNET) != 0)
        return fail(launch, "enter the network namespace");
    const auto& directory = launch.spec.directory;
    if (!directory.empty() && ::chdir(directory.c_str()) != 0)
        return fail(launch, "change directory");
    if (!place_descriptors(launch)) return false;
    if (launch.spec.confinement)
        if (const char* failed = confine(*launch.spec.confinement)) return fail(launch, failed);
    // A change of credentials takes it back.
    if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return fail(launch, "set the parent-death signal");
    if (launch.spec.granted_file >= 0)
        if (const char* failed = filter_opens(launch.granted_file)) return fail(launch, failed);
    // If we died before that call, nobody will send it.
    if (::getppid() != launch.parent) return errno = ESRCH, fail(launch, "find the parent");
    return true;
}

int child_main(void* argument) {
    auto& launch = *static_cast<Launch*>(argument);
    if (prepare_child(launch)) {
        ::execve(launch.program.c_str(), launch.argv.data(), environ);
        fail(launch, "execute");
    }
    ::_exit(127);
}

struct Pipe {
    UniqueFd read;
    UniqueFd write;
};

Pipe make_pipe(const std::string& program) {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        throw Failure(fmt::format("start '{}': make a pipe: {}", program, reason(errno)));
    return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

std::pair<pid_t, UniqueFd> start(const SpawnSpec& spec) {
    const auto& name = spec.argv.at(0);
    const auto program = find_program(name);
    if (!program) throw Failure(fmt::format("start '{}': not found in PATH", name));
    Launch launch{.spec = spec, .program = *program, .argv = {}, .parent = ::getpid()};
    for (const auto& word : spec.argv) launch.argv.push_back(const_cast<char*>(word.c_str()));
    launch.argv.push_back(nullptr);

    std::vector<char> stack(child_stack_size);
    int pidfd = -1;
    const BlockedSignals blocked;  // a handler of ours must not run in the child's memory, ours
    const int flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD;
    const int dumpable = ::prctl(PR_GET_DUMPABLE);
    const pid_t pid = ::clone(child_main, stack.data() + stack.size(), flags, &launch, &pidfd);
    // A child that changed its user has marked the memory that it shared with us.
    if (dumpable == 1) ::prctl(PR_SET_DUMPABLE, 1);
    if (pid < 0) throw Failure(fmt::format("start '{}': {}", name, reason(errno)));
    UniqueFd owned{pidfd};
    if (launch.failed_call != nullptr) {
        ::waitpid(pid, nullptr, 0);
        throw Failure(
            fmt::format("start '{}': {}: {}", name, launch.failed_call, reason(launch.error)));
    }
    return {pid, std::move(owned)};
}

/// Feeds stdin and drains stdout and stderr until all are closed, or it is to be killed. Throws
/// Failure where their text is not to be had.
ToolResult::End exchange(const Tool& tool, Pipe& in, Pipe& out, Pipe& err, ToolResult& result) {
    const auto unreadable = [&] {
        return Failure(fmt::format("read the output of '{}': {}", tool.argv.at(0), reason(errno)));
    };
    using Clock = std::chrono::steady_clock;
    using std::chrono::milliseconds;
    auto last = Clock::now();  // when it printed something on stdout
    std::string_view input = tool.input;
    ::fcntl(in.write.get(), F_SETFL, O_NONBLOCK);
    if (input.empty()) in.write.reset();
    while (in.write || out.read || err.read) {
        std::array<pollfd, 4> fds{{{in.write.get(), POLLOUT, 0},
                                   {out.read.get(), POLLIN, 0},
                                   {err.read.get(), POLLIN, 0},
                                   {tool.stop, POLLIN, 0}}};
        int wait = -1;
        if (tool.patience) {
            const auto left = last + *tool.patience - Clock::now();
            if (left <= left.zero()) return ToolResult::End::impatience;
            wait = static_cast<int>(std::chrono::ceil<milliseconds>(left).count());
        }
        const int ready = ::poll(fds.data(), fds.size(), wait);
        if (ready < 0) {
            if (errno == EINTR) continue;
            throw unreadable();
        }
        if (fds[3].revents != 0) return ToolResult::End::stopped;
        if (fds[0].revents != 0) {
            const auto size = ::write(in.write.get(), input.data(), input.size());
            if (size > 0) input.remove_prefix(static_cast<std::size_t>(size));
            if (size < 0 || input.empty()) in.write.reset();
        }
        const auto drain = [&](const pollfd& fd, UniqueFd& end, std::string& text,
                               const auto& listener) {
            if (fd.revents == 0) return;
            std::array<char, 65536> buffer;
            const auto size = ::read(end.get(), buffer.data(), buffer.size());
            if (size < 0) throw unreadable();
            if (size == 0) return end.reset();
            const std::string_view piece{buffer.data(), static_cast<std::size_t>(size)};
            text += piece.substr(0, most_kept - text.size());
            if (listener) listener(piece);
        };
        if (fds[1].revents != 0) last = Clock::now();
        drain(fds[1], out.read, result.out, tool.on_output);
        drain(fds[2], err.read, result.err, tool.on_error);
    }
    return ToolResult::End::itself;
}

}  // namespace

BlockedSignals::BlockedSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::sigprocmask(SIG_SETMASK, &all, &saved_);
}

BlockedSignals::~BlockedSignals() {
    ::sigprocmask(SIG_SETMASK, &saved_, nullptr);
}

std::string ExitStatus::describe() const {
    if (signal != 0) return fmt::format("signal {} ({})", signal, ::strsignal(signal));
    return fmt::format("exit status {}", code);
}

Child Child::spawn(const SpawnSpec& spec) {
    auto [pid, pidfd] = start(spec);
    return Child{pid, std::move(pidfd)};
}

Child& Child::operator=(Child&& other) noexcept {
    std::swap(pid_, other.pid_);
    std::swap(pidfd_, other.pidfd_);
    return *this;
}

Child::~Child() {
    if (!pidfd_) return;
    signal(SIGKILL);
    wait_blocking();
}

ExitStatus Child::reap() {
    siginfo_t info{};
    // By pid: it is ours until we wait for it, and Asio made the pidfd non-blocking.
    while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED) != 0)
        if (errno != EINTR) break;
    pidfd_.reset();
    if (info.si_code == CLD_EXITED) return {.code = info.si_status};
    return {.signal = info.si_status};
}

boost::asio::awaitable<ExitStatus> Child::wait() {
    namespace asio = boost::asio;
    asio::posix::stream_descriptor pidfd{co_await asio::this_coro::executor};
    in_step(fmt::format("wait for the end of process {}", pid_), [&] {
        UniqueFd copy{::fcntl(pidfd_.get(), F_DUPFD_CLOEXEC, 0)};
        if (!copy) throw boost::system::system_error{errno, boost::system::generic_category()};
        pidfd.assign(copy.get());
        (void)copy.release();
    });
    // Asio's reactor may wake a descriptor for what happened to another one that had its number.
    pollfd ended{pidfd.native_handle(), POLLIN, 0};
    do {
        co_await pidfd.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
    } while (::poll(&ended, 1, 0) == 0);
    co_return reap();
}

ExitStatus Child::wait_blocking() {
    return reap();
}

void Child::signal(int number) noexcept {
    if (pidfd_) ::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0U);
}

void raise_descriptor_limit() noexcept {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    saved_limit = limit;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

int become(const std::vector<std::string>& argv) {
    std::vector<char*> words;
    for (const auto& word : argv) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    ::signal(SIGPIPE, SIG_DFL);
    ::execvp(words[0], words.data());
    return errno;
}

std::optional<std::string> find_program(const std::string& name) {
    if (name.find('/') != std::string::npos) return name;
    const char* path = ::getenv("PATH");
    // sbin is where dnsmasq lives, and not in every user's PATH.
    std::string_view rest = path != nullptr ? path : "";
    const std::string all = std::string{rest} + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
    for (rest = all; !rest.empty();) {
        const auto colon = rest.find(':');
        const auto directory = rest.substr(0, colon);
        rest.remove_prefix(colon == std::string_view::npos ? rest.size() : colon + 1);
        if (directory.empty()) continue;
        auto candidate = fmt::format("{}/{}", directory, name);
        if (::access(candidate.c_str(), X_OK) == 0) return candidate;
    }
    return std::nullopt;
}

ToolResult run_tool(const Tool& tool) {
    auto in = make_pipe(tool.argv.at(0));
    auto out = make_pipe(tool.argv.at(0));
    auto err = make_pipe(tool.argv.at(0));
    SpawnSpec spec;
    spec.argv = tool.argv;
    spec.inherit = tool.inherit;
    spec.stdin_fd = in.read.get();
    spec.stdout_fd = out.write.get();
    spec.stderr_fd = err.write.get();
    spec.directory = tool.directory;
    spec.confinement = tool.confinement;
    auto child = Child::spawn(spec);
    in.read.reset();
    out.write.reset();
    err.write.reset();
    ToolResult result;
    result.end = exchange(tool, in, out, err, result);
    if (result.end != ToolResult::End::itself) child.signal(SIGKILL);
    result.status = child.wait_blocking();
    return result;
}

ToolResult run_tool(const std::vector<std::string>& argv, const std::string& input) {
    return run_tool(Tool{.argv = argv, .input = input});
}

}  // namespace qvm
