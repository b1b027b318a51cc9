#include "netns/user_namespace.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/nsfs.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "netns/error.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

namespace {

/// A file of this process that says how ids are mapped: some of them cannot be written twice.
void write_own(const char* path, std::string_view text) {
    const auto step = fmt::format("write '{}' to '{}'", text, path);
    const UniqueFd fd{check(::open(path, O_WRONLY | O_CLOEXEC), step)};
    check(static_cast<int>(::write(fd.get(), text.data(), text.size())), step);
}

std::string read_own(const char* path) {
    const auto step = fmt::format("read '{}'", path);
    const UniqueFd fd{check(::open(path, O_RDONLY | O_CLOEXEC), step)};
    std::array<char, 4096> buffer;
    const int size = check(static_cast<int>(::read(fd.get(), buffer.data(), buffer.size())), step);
    return {buffer.data(), static_cast<std::size_t>(size)};
}

bool is_same(int one, int other) {
    const char* step = "look at a user namespace";
    struct stat a {
    }, b{};
    check(::fstat(one, &a), step);
    check(::fstat(other, &b), step);
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace

void create_user_namespace() {
    check(::unshare(CLONE_NEWUSER), "create a user namespace");
}

void map_to_root(uid_t uid, gid_t gid) {
    if (read_own("/proc/self/uid_map").empty())
        write_own("/proc/self/uid_map", fmt::format("0 {} 1", uid));
    if (!read_own("/proc/self/gid_map").empty()) return;
    write_own("/proc/self/setgroups", "deny");
    write_own("/proc/self/gid_map", fmt::format("0 {} 1", gid));
}

void join_user_namespace(int network_namespace) {
    const char* step = "find the owner of the network namespace";
    const UniqueFd owner{check(::ioctl(network_namespace, NS_GET_USERNS), step)};
    const UniqueFd own{check(::open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC), step)};
    if (is_same(owner.get(), own.get())) return;
    check(::setns(owner.get(), CLONE_NEWUSER), "join the user namespace");
}

void tolerate_setgroups() {
    if (!read_own("/proc/self/setgroups").starts_with("deny")) return;
    // Documentation/userspace-api/seccomp_filter.rst: an "error" of 0 is a call that worked.
    std::array<sock_filter, 6> program{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setgroups, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    check(static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0U, &filter)),
          "install a filter for setgroups(2)");
}

}  // namespace qvm::netns
