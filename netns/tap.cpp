#include "netns/tap.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include "netns/error.h"

namespace qvm::netns {

Tap open_tap(const std::string& name, unsigned queues) {
    ifreq request{};
    name.copy(request.ifr_name, IFNAMSIZ - 1);
    // IFF_TUN_EXCL is for persistent devices; without it an existing TAP would be adopted.
    const int flags =
        IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (queues > 1 ? IFF_MULTI_QUEUE : IFF_TUN_EXCL);
    request.ifr_flags = static_cast<short>(flags);
    Tap result;
    for (unsigned queue = 0; queue < queues; ++queue) {
        // The first answer has the name that the others go by.
        UniqueFd fd{
            check(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK), "open '/dev/net/tun'")};
        check(::ioctl(fd.get(), TUNSETIFF, &request), fmt::format("create TAP '{}'", name));
        result.queues.push_back(std::move(fd));
    }
    result.name = request.ifr_name;
    return result;
}

std::vector<UniqueFd> open_vhost(unsigned queues) {
    std::vector<UniqueFd> result;
    for (unsigned queue = 0; queue < queues; ++queue) {
        UniqueFd fd{::open("/dev/vhost-net", O_RDWR | O_CLOEXEC)};
        if (!fd) return {};
        result.push_back(std::move(fd));
    }
    return result;
}

int interface_index(const std::string& name) {
    const unsigned index = ::if_nametoindex(name.c_str());
    if (index == 0) throw Error(fmt::format("look up interface '{}'", name), errno);
    return static_cast<int>(index);
}

}  // namespace qvm::netns
