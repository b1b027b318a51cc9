#include "launcher/seccomp.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <initializer_list>

namespace qvm {

namespace {

constexpr std::uint32_t allowed = SECCOMP_RET_ALLOW;
constexpr std::uint32_t refused = SECCOMP_RET_ERRNO | EPERM;
constexpr std::uint32_t unknown = SECCOMP_RET_ERRNO | ENOSYS;

// Of the kernel's later versions than Debian 12's; of every architecture.
constexpr unsigned sys_fchmodat2 = 452;
constexpr unsigned sys_setxattrat = 463;
constexpr unsigned sys_removexattrat = 466;
constexpr unsigned sys_open_tree_attr = 467;
constexpr unsigned sys_file_setattr = 469;

constexpr std::initializer_list<unsigned> refused_calls{
    // Attributes and names of files. A Landlock before version 3 lets truncate(2) through.
    SYS_fchmod, SYS_fchmodat, sys_fchmodat2, SYS_fchown, SYS_fchownat, SYS_setxattr, SYS_lsetxattr,
    SYS_fsetxattr, sys_setxattrat, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr,
    sys_removexattrat, SYS_utimensat, sys_file_setattr, SYS_truncate, SYS_linkat, SYS_symlinkat,
    SYS_unlinkat, SYS_renameat, SYS_renameat2, SYS_mkdirat, SYS_mknodat,
#ifdef __x86_64__
    SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes, SYS_futimesat, SYS_link, SYS_symlink,
    SYS_unlink, SYS_rename, SYS_mkdir, SYS_mknod, SYS_rmdir,
    // Processes of its own, which nobody would wait for or end.
    SYS_fork, SYS_vfork,
#endif
    // Other processes, and what it could share with them.
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_process_madvise,
    SYS_process_mrelease, SYS_kcmp, SYS_pidfd_open, SYS_pidfd_getfd, SYS_pidfd_send_signal,
    SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_setpriority, SYS_ioprio_set,
    SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam, SYS_sched_setscheduler,
    SYS_migrate_pages, SYS_move_pages, SYS_shmget, SYS_shmat, SYS_shmctl, SYS_semget, SYS_semop,
    SYS_semtimedop, SYS_semctl, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open,
    SYS_mq_unlink,
    // Sockets; and io_uring, whose requests pass by this filter. QEMU waits by epoll, then.
    SYS_socket, SYS_socketpair, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    // Mounts and namespaces.
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_open_tree, sys_open_tree_attr,
    SYS_move_mount, SYS_mount_setattr, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick,
    SYS_unshare, SYS_setns, SYS_name_to_handle_at, SYS_open_by_handle_at, SYS_quotactl,
    SYS_quotactl_fd, SYS_swapon, SYS_swapoff,
    // The kernel itself.
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key};

/// A program for the kernel, put together without allocating.
class Filter {
  public:
    constexpr void add(unsigned code, std::uint32_t value, std::uint8_t if_true = 0,
                       std::uint8_t if_false = 0) {
        steps_[size_++] = {static_cast<std::uint16_t>(code), if_true, if_false, value};
    }
    /// The answer to one call.
    constexpr void answer(unsigned call, std::uint32_t answer) {
        add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
        add(BPF_RET | BPF_K, answer);
    }
    /// The answer where an argument's lower half passes a test (BPF_JEQ, BPF_JSET) with one of the
    /// values; and else.
    constexpr void answer(unsigned call, unsigned argument, unsigned test,
                          std::initializer_list<std::uint32_t> values, std::uint32_t answer,
                          std::uint32_t otherwise) {
        add(BPF_JMP | BPF_JEQ | BPF_K, call, 0, static_cast<std::uint8_t>(2 * values.size() + 2));
        add(BPF_LD | BPF_W | BPF_ABS,
            offsetof(seccomp_data, args) + argument * 8);  // little-endian
        for (const auto value : values) {
            add(BPF_JMP | test | BPF_K, value, 0, 1);
            add(BPF_RET | BPF_K, answer);
        }
        add(BPF_RET | BPF_K, otherwise);
    }
    [[nodiscard]] constexpr std::uint16_t size() const noexcept { return size_; }
    [[nodiscard]] sock_fprog program() noexcept { return {size_, steps_.data()}; }

  private:
    std::array<sock_filter, 4 * refused_calls.size()> steps_{};
    std::uint16_t size_ = 0;
};

constexpr Filter filter_for(std::uint32_t pid) {
    Filter filter;
    filter.add(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch));
    filter.add(BPF_JMP | BPF_JEQ | BPF_K, own_architecture, 1, 0);
    filter.add(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    filter.add(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
#ifdef __x86_64__
    // -1 is a call that a tracer has taken out.
    constexpr std::uint32_t first_of_x32 = 0x40000000;
    filter.add(BPF_JMP | BPF_JGE | BPF_K, first_of_x32, 0, 2);
    filter.add(BPF_JMP | BPF_JEQ | BPF_K, ~0U, 1, 0);
    filter.add(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
#endif
    for (const auto call : refused_calls) filter.answer(call, refused);
    for (const unsigned call : std::initializer_list<unsigned>{SYS_kill, SYS_tkill, SYS_tgkill})
        filter.answer(call, 0, BPF_JEQ, {pid}, allowed, refused);
    filter.answer(SYS_prlimit64, 0, BPF_JEQ, {0}, allowed, refused);
    filter.answer(SYS_fcntl, 1, BPF_JEQ, {F_SETOWN, F_SETOWN_EX}, refused, allowed);
    // Threads alone. One has the namespaces of the others, but for those that need a capability.
    filter.answer(SYS_clone, 0, BPF_JSET, {CLONE_THREAD}, allowed, refused);
    // Its flags are where no filter can read them; C libraries take clone(2), then.
    filter.answer(SYS_clone3, unknown);
    filter.add(BPF_RET | BPF_K, allowed);
    return filter;
}
static_assert(filter_for(1).size() > 0, "it has no room for all of them");

}  // namespace

bool keep_to_itself() noexcept {
    auto filter = filter_for(static_cast<std::uint32_t>(::getpid()));
    auto program = filter.program();
    return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0U, &program) == 0;
}

}  // namespace qvm
