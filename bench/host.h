#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "netns/error.h"

/// The host that a benchmark works on.
namespace bench {

inline void sh(const std::string& command) {
    if (std::system(command.c_str()) != 0) throw std::runtime_error("failed: " + command);
}

/// A host with an uplink that leads nowhere, in namespaces that end with this process.
inline void become_host() {
    using qvm::netns::check;
    check(::unshare(CLONE_NEWNET | CLONE_NEWNS), "make namespaces");
    check(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make mounts private");
    check(::mount("none", "/run", "tmpfs", 0, nullptr), "mount /run");
    // What libnl's sysfs lookups of interfaces see must be this namespace.
    check(::mount("none", "/sys", "sysfs", 0, nullptr), "mount /sys");
    sh("ip link set lo up; ip link add wan0 type veth peer name wan1; ip link set wan1 up;"
       "ip addr add 203.0.113.2/24 dev wan0; ip link set wan0 up;"
       "ip route add default via 203.0.113.1");
}

/// Waits until no host end of a veth is left.
inline void await_no_links() {
    const auto is_one = [](const auto& entry) {
        return entry.path().filename().string().starts_with("qvm-");
    };
    while (std::ranges::any_of(std::filesystem::directory_iterator{"/sys/class/net"}, is_one))
        ::usleep(1000);
}

}  // namespace bench
