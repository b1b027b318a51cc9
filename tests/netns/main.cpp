#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "netns/unique_fd.h"
#include "tests/catch.h"

namespace {

bool write_file(const char* path, const std::string& text) {
    const qvm::UniqueFd fd{::open(path, O_WRONLY | O_CLOEXEC)};
    return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

/// Makes this process root of a user namespace of its own, in a network namespace of its own.
bool leave_the_host() {
    const auto uid = ::geteuid();
    const auto gid = ::getegid();
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return false;
    return write_file("/proc/self/setgroups", "deny") &&
           write_file("/proc/self/uid_map", fmt::format("0 {} 1", uid)) &&
           write_file("/proc/self/gid_map", fmt::format("0 {} 1", gid));
}

}  // namespace

int main(int argc, char** argv) {
    constexpr int skipped = 77;
    if (!leave_the_host()) {
        std::puts("skipped: this kernel or this user may not make user namespaces");
        return skipped;
    }
    if (!qvm::UniqueFd{::open("/dev/net/tun", O_RDWR | O_CLOEXEC)}) {
        std::puts("skipped: /dev/net/tun cannot be opened");
        return skipped;
    }
    // IPv6 addresses of their own come when the kernel sees a carrier, at some moment: no picture
    // of the host would ever be the same twice. Missing where the kernel has no IPv6.
    (void)write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    return run_tests(argc, argv);
}
