// at_call N kill|CALL=ERRNO,... REPORT [--forked] -- COMMAND...
//
// Runs a command and, when its process is about to make its N-th system call (counted from 1 over
// all of its threads), kills it with SIGKILL; or it counts only the calls of a table (numbers, both
// of them), and has the N-th fail with its errno without being made. That counts from the first
// fcntl on, which is where main() begins. With --forked it is the process that the command forks
// first that this happens to. What it vforks is a part of it until it is another program. All other
// children are let go at once: they are not traced, and die or live as they would.
//
// REPORT gets one line: "N NUMBER" for the call that was hit, "TOTAL -" when there were fewer. The
// exit status is the command's, 128 + N for a signal. All die with at_call.

#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace {

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "at_call: %s: %s\n", what, std::strerror(errno));
    std::_Exit(2);
}

constexpr unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                                  PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;

using Errors = std::map<long, int>;  ///< errno by a call's number

Errors parse_errors(const char* text) {
    Errors errors;
    for (char* rest = nullptr; *text != '\0'; text = *rest == ',' ? rest + 1 : rest) {
        const long call = std::strtol(text, &rest, 10);
        if (*rest != '=') break;
        errors[call] = static_cast<int>(std::strtol(rest + 1, &rest, 10));
    }
    return errors;
}

class Tracer {
  public:
    /// Kills where there are no errors.
    Tracer(long at, Errors errors, bool forked, const char* report)
        : at_(at), errors_(std::move(errors)), forked_(forked), report_(report) {}

    /// The command's exit status.
    int operator()(pid_t command) {
        command_ = command;
        target_ = forked_ ? 0 : command;
        int status = 0;
        if (::waitpid(command, &status, 0) != command || !WIFSTOPPED(status)) fail("start");
        if (::ptrace(PTRACE_SETOPTIONS, command, nullptr, options) != 0) fail("PTRACE_SETOPTIONS");
        go_on(command, 0);
        for (;;) {
            const pid_t thread = ::waitpid(-1, &status, __WALL);
            if (thread < 0 && errno == ECHILD) break;
            if (thread < 0 && errno == EINTR) continue;
            if (thread < 0) fail("waitpid");
            if (WIFSTOPPED(status))
                stopped(thread, status);
            else
                ended(thread, status);
        }
        report();
        return exit_status_;
    }

  private:
    /// Threads that are not the target's wait for nothing but the fork.
    void go_on(pid_t thread, int signal) {
        ::ptrace(is_counted(thread) || wants_fork(thread) ? PTRACE_SYSCALL : PTRACE_CONT, thread,
                 nullptr, signal);
    }
    [[nodiscard]] bool wants_fork(pid_t thread) const {
        return forked_ && target_ == 0 && thread == command_;
    }
    [[nodiscard]] bool is_counted(pid_t thread) const {
        return target_ != 0 && (thread == target_ || threads_.contains(thread));
    }

    void stopped(pid_t thread, int status) {
        const int signal = WSTOPSIG(status);
        const int event = status >> 16;
        if (signal == (SIGTRAP | 0x80)) return at_syscall(thread);
        if (event == PTRACE_EVENT_EXEC && vforked_.erase(thread) > 0) {
            threads_.erase(thread);
            ::ptrace(PTRACE_DETACH, thread, nullptr, nullptr);
            return;
        }
        if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_FORK ||
            event == PTRACE_EVENT_VFORK)
            born(thread, event);
        else if (event != 0)
            go_on(thread, 0);
        else if (children_.erase(thread) > 0)
            ::ptrace(PTRACE_DETACH, thread, nullptr, nullptr);
        else if (signal == SIGSTOP && expected_.erase(thread) > 0)
            go_on(thread, 0);
        else if (!is_counted(thread) && thread != command_)
            early_.insert(thread);  // its birth is told next
        else
            go_on(thread, signal);
    }

    void born(pid_t parent, int event) {
        unsigned long message = 0;
        ::ptrace(PTRACE_GETEVENTMSG, parent, nullptr, &message);
        const auto child = static_cast<pid_t>(message);
        const bool is_early = early_.erase(child) > 0;
        if (event != PTRACE_EVENT_FORK && is_counted(parent)) {
            threads_.insert(child);
            if (event == PTRACE_EVENT_VFORK) vforked_.insert(child);
            welcome(child, is_early);
        } else if (event == PTRACE_EVENT_FORK && wants_fork(parent)) {
            target_ = child;
            welcome(child, is_early);
        } else if (is_early) {
            ::ptrace(PTRACE_DETACH, child, nullptr, nullptr);
        } else {
            children_.insert(child);
        }
        go_on(parent, 0);
    }

    void welcome(pid_t thread, bool is_early) {
        if (is_early)
            go_on(thread, 0);
        else
            expected_.insert(thread);
    }

    void at_syscall(pid_t thread) {
        __ptrace_syscall_info info{};
        if (!is_counted(thread) ||
            ::ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) <= 0)
            return go_on(thread, 0);
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY) enters(thread, info.entry.nr, info.entry.args);
        if (info.op == PTRACE_SYSCALL_INFO_EXIT && failing_ == thread) {
            finish(thread);
            failing_ = 0;
        }
        go_on(thread, 0);
    }

    void enters(pid_t thread, unsigned long long number, const std::uint64_t* arguments) {
        if (!counts(static_cast<long>(number), arguments) || ++count_ != at_) return;
        number_ = static_cast<long>(number);
        if (errors_.empty()) {
            ::kill(target_, SIGKILL);
            return;
        }
        failing_ = thread;
        skip(thread);
    }

    bool counts(long number, const std::uint64_t* arguments) {
        if (errors_.empty()) return true;
        begun_ = begun_ || number == SYS_fcntl;
        if (!begun_ || !errors_.contains(number)) return false;
        // They read or set a flag, and cannot fail.
        if (number == SYS_ioctl && arguments[1] == FIONBIO) return false;
        const auto command = arguments[1];
        if (number == SYS_fcntl &&
            (command == F_GETFL || command == F_SETFL || command == F_GETFD || command == F_SETFD))
            return false;
        // A pipe between two of us has room for what is written to it.
        const auto fd = static_cast<int>(arguments[0]);
        if (number == SYS_write && fd > STDERR_FILENO && is_pipe(fd)) return false;
        // What came through a Unix socket is there, and nothing more is needed.
        const bool receives = number == SYS_recvfrom || number == SYS_recvmsg;
        return !receives || family_of(fd) != AF_UNIX;
    }

    /// Of the target's descriptor.
    [[nodiscard]] int copy_of(int fd) const {
        const auto process = static_cast<int>(::syscall(SYS_pidfd_open, target_, 0));
        const auto copy = static_cast<int>(::syscall(SYS_pidfd_getfd, process, fd, 0));
        ::close(process);
        return copy;
    }

    [[nodiscard]] int family_of(int socket) const {
        const int copy = copy_of(socket);
        int family = -1;
        socklen_t size = sizeof family;
        ::getsockopt(copy, SOL_SOCKET, SO_DOMAIN, &family, &size);
        ::close(copy);
        return family;
    }

    [[nodiscard]] bool is_pipe(int fd) const {
        const int copy = copy_of(fd);
        struct stat status {};
        const bool found = ::fstat(copy, &status) == 0;
        ::close(copy);
        return found && S_ISFIFO(status.st_mode);
    }

    // A call number of -1 is none; what is in its result is what the caller sees. But a brk that
    // fails returns the break, as does one that asks for 0.
    void skip(pid_t thread) {
        auto registers = read(thread);
        argument_ = registers.rdi;
        if (number_ == SYS_brk)
            registers.rdi = 0;
        else
            registers.orig_rax = ~0ULL;
        write(thread, registers);
    }
    void finish(pid_t thread) const {
        auto registers = read(thread);
        if (number_ == SYS_brk)
            registers.rdi = argument_;
        else
            registers.rax = static_cast<unsigned long long>(-errors_.at(number_));
        write(thread, registers);
    }
    static user_regs_struct read(pid_t thread) {
        user_regs_struct registers{};
        iovec data{&registers, sizeof registers};
        ::ptrace(PTRACE_GETREGSET, thread, NT_PRSTATUS, &data);
        return registers;
    }
    static void write(pid_t thread, user_regs_struct& registers) {
        iovec data{&registers, sizeof registers};
        ::ptrace(PTRACE_SETREGSET, thread, NT_PRSTATUS, &data);
    }

    void ended(pid_t thread, int status) {
        threads_.erase(thread);
        vforked_.erase(thread);
        if (thread != command_) return;
        exit_status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

    void report() const {
        FILE* file = std::fopen(report_, "we");
        if (file == nullptr) fail(report_);
        if (number_ < 0)
            std::fprintf(file, "%ld -\n", count_);
        else
            std::fprintf(file, "%ld %ld\n", at_, number_);
        std::fclose(file);
    }

    long at_;
    Errors errors_;
    bool begun_ = false;  ///< to count
    bool forked_;
    const char* report_;
    pid_t command_ = 0;
    pid_t target_ = 0;          ///< whose calls are counted; 0: it is not there yet
    std::set<pid_t> threads_;   ///< of the target
    std::set<pid_t> vforked_;   ///< those among them that are to become other programs
    std::set<pid_t> expected_;  ///< ours, and yet to stop for the first time
    std::set<pid_t> children_;  ///< the same, to be let go then
    std::set<pid_t> early_;     ///< stopped before their birth was told
    pid_t failing_ = 0;
    unsigned long long argument_ = 0;  ///< the failing call's first
    long count_ = 0;
    long number_ = -1;
    int exit_status_ = 2;
};

}  // namespace

int main(int argc, char** argv) {
    const std::string usage =
        "usage: at_call N kill|CALL=ERRNO,... REPORT [--forked] -- COMMAND...\n";
    const bool forked = argc > 4 && std::string{argv[4]} == "--forked";
    const int first = forked ? 6 : 5;
    if (argc <= first || std::string{argv[first - 1]} != "--") {
        std::fputs(usage.c_str(), stderr);
        return 2;
    }
    const auto errors = parse_errors(argv[2]);  // none of "kill"
    const pid_t command = ::fork();
    if (command == 0) {
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::execvp(argv[first], argv + first);
        fail(argv[first]);
    }
    return Tracer{std::atol(argv[1]), errors, forked, argv[3]}(command);
}
