#include "launcher/publish.h"

#include <fmt/format.h>

#include <sstream>

#include "launcher/failure.h"

namespace qvm {

std::string host_forward(const PublishOption& publish) {
    if (publish.host_address.is_v6())
        throw Failure(fmt::format("--publish '{}': QEMU's user networking forwards IPv4 only",
                                  to_string(publish)));
    return fmt::format("{}:{}:{}-:{}", publish.udp ? "udp" : "tcp",
                       publish.host_address.to_string(), publish.host_port, publish.guest_port);
}

void take_forwarded_ports(const std::string& info_usernet, std::vector<PublishOption>& ports) {
    std::istringstream lines{info_usernet};
    for (std::string line; std::getline(lines, line);) {
        // TCP[HOST_FORWARD]  13  127.0.0.1  40001  10.0.2.15  22  0  0
        std::istringstream words{line};
        std::string kind, fd, address, guest;
        unsigned host_port = 0, guest_port = 0;
        if (!(words >> kind >> fd >> address >> host_port >> guest >> guest_port)) continue;
        if (kind.find("[HOST_FORWARD]") == std::string::npos) continue;
        for (auto& port : ports) {
            if (port.host_port != 0 || port.guest_port != guest_port ||
                port.udp != kind.starts_with("UDP"))
                continue;
            port.host_port = static_cast<std::uint16_t>(host_port);
            break;
        }
    }
}

}  // namespace qvm
