#include "launcher/seccomp.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <functional>
#include <map>
#include <thread>

using namespace qvm;

namespace {

/// What becomes of a call, -1 where it failed, in a process that keeps to itself: errno, 0 where it
/// worked, or the signal that it died of, negative.
int end_of(const std::function<long()>& call) {
    const auto pid = ::fork();
    if (pid == 0) {
        for (const int number : {SIGTERM, SIGABRT, SIGSEGV}) ::signal(number, SIG_DFL);  // Catch's
        const bool ready = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && keep_to_itself();
        ::_exit(!ready ? 255 : call() < 0 ? errno : 0);
    }
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("who keeps to itself changes no file's attributes or name, and reaches nobody else") {
    const auto parent = ::getpid();
    const auto* file = "/tmp/qvm-test-nothing";  // is not looked for
    rlimit limit{};
    const std::map<std::string, std::function<long()>> calls{
        {"chmod", [&] { return ::chmod(file, 0600); }},
        {"fchmod", [&] { return ::fchmod(0, 0600); }},
        {"fchmodat2", [&] { return ::syscall(452, AT_FDCWD, file, 0600, 0); }},
        {"chown", [&] { return ::lchown(file, 0, 0); }},
        {"fchownat", [&] { return ::fchownat(AT_FDCWD, file, 0, 0, 0); }},
        {"setxattr", [&] { return ::syscall(SYS_setxattr, file, "user.x", "", 0, 0); }},
        {"removexattr", [&] { return ::syscall(SYS_removexattr, file, "user.x"); }},
        {"utimensat", [&] { return ::utimensat(AT_FDCWD, file, nullptr, 0); }},
        {"truncate", [&] { return ::truncate(file, 0); }},
        {"unlink", [&] { return ::unlink(file); }},
        {"rename", [&] { return ::rename(file, file); }},
        {"link", [&] { return ::link(file, file); }},
        {"mkdir", [&] { return ::mkdir(file, 0700); }},
        {"kill", [&] { return ::kill(parent, 0); }},
        {"kill all", [&] { return ::kill(-1, 0); }},
        {"tkill", [&] { return ::syscall(SYS_tkill, parent, 0); }},
        {"tgkill", [&] { return ::syscall(SYS_tgkill, parent, parent, 0); }},
        {"rt_sigqueueinfo", [&] { return ::syscall(SYS_rt_sigqueueinfo, parent, 0, nullptr); }},
        {"pidfd_open", [&] { return ::syscall(SYS_pidfd_open, parent, 0); }},
        {"pidfd_send_signal", [&] { return ::syscall(SYS_pidfd_send_signal, 0, 0, nullptr, 0); }},
        {"a signal by a file", [&] { return ::fcntl(0, F_SETOWN, parent); }},
        {"limits of others", [&] { return ::prlimit(parent, RLIMIT_CPU, nullptr, &limit); }},
        {"ptrace", [&] { return ::syscall(SYS_ptrace, 16, parent, 0, 0); }},
        {"process_vm_readv",
         [&] { return ::syscall(SYS_process_vm_readv, parent, nullptr, 0, nullptr, 0, 0); }},
        {"shmget", [&] { return ::syscall(SYS_shmget, 1, 1, 0); }},
        {"socket", [&] { return ::socket(AF_UNIX, SOCK_STREAM, 0); }},
        {"io_uring_setup", [&] { return ::syscall(SYS_io_uring_setup, 1, nullptr); }},
        {"io_uring_enter", [&] { return ::syscall(SYS_io_uring_enter, 0, 0, 0, 0, nullptr, 0); }},
        {"io_uring_register", [&] { return ::syscall(SYS_io_uring_register, 0, 0, nullptr, 0); }},
        {"mount", [&] { return ::syscall(SYS_mount, "", "/", "", 0, nullptr); }},
        {"fsopen", [&] { return ::syscall(SYS_fsopen, "tmpfs", 0); }},
        {"unshare", [&] { return ::unshare(CLONE_NEWUSER); }},
        {"clone", [&] { return ::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); }},
        {"a process", [&] { return ::syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }},
        {"another's process", [&] { return ::syscall(SYS_clone, CLONE_PARENT, 0, 0, 0, 0); }},
        {"one with its memory", [&] { return ::syscall(SYS_clone, CLONE_VM, 0, 0, 0, 0); }},
#ifdef SYS_fork
        {"fork", [&] { return ::syscall(SYS_fork); }},
        {"vfork", [&] { return ::syscall(SYS_vfork); }},
#endif
        {"bpf", [&] { return ::syscall(SYS_bpf, 0, nullptr, 0); }},
        {"keyctl", [&] { return ::syscall(SYS_keyctl, 0, 0, 0, 0, 0); }},
    };
    for (const auto& [name, call] : calls) {
        CAPTURE(name);
        CHECK(end_of(call) == EPERM);
    }
}

TEST_CASE("who keeps to itself has threads, its own files, and signals to itself") {
    CHECK(end_of([] {
              std::thread{[] {}}.join();
              return 0;
          }) == 0);
    CHECK(end_of([] {
              const int fd = ::open("/tmp", O_TMPFILE | O_RDWR, 0600);
              return ::pwrite(fd, "x", 1, 99999) == 1 && ::ftruncate(fd, 0) == 0 ? 0 : -1;
          }) == 0);
    CHECK(end_of([] { return ::raise(SIGUSR1); }) == -SIGUSR1);
    CHECK(end_of([] { return ::kill(::getpid(), SIGTERM); }) == -SIGTERM);
    CHECK(end_of([]() -> long { std::abort(); }) == -SIGABRT);
}

#ifdef __x86_64__
TEST_CASE("the numbers of other architectures lead around nothing") {
    CHECK(end_of([] { return ::syscall(-1); }) == ENOSYS);  // a tracer's
    constexpr long x32 = 0x40000000;
    CHECK(end_of([] { return ::syscall(x32 + SYS_getpid); }) == -SIGSYS);
    CHECK(end_of([] {
              long number = 20;  // getpid(2) of i386
              asm volatile("int $0x80" : "+a"(number) : : "memory");
              return number;
          }) < 0);
}
#endif
