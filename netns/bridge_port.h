#pragma once

#include <optional>
#include <string>
#include <vector>

#include "netns/nft.h"
#include "netns/route_socket.h"
#include "netns/tap.h"
#include "netns/unique_fd.h"

/// A guest on a bridge that the host has already: a TAP in the host's own namespace.
namespace qvm::netns {

/// The port, decided.
struct PortPlan {
    std::string bridge;
    std::string link;  ///< the TAP's name
    std::string mac;   ///< the guest's
    unsigned mtu = 1500;
    unsigned queues = 1;
    bool port_security = true;
};

/// The MTU (bytes) of a bridge in the namespace of `host`. Throws Error where there is none of that
/// name, or it is something else.
unsigned read_bridge_mtu(RouteSocket& host, const std::string& bridge);

/// What the guest may send: with its own MAC, and not as a router or DHCP server. Its addresses are
/// the LAN's to give. Nothing without port security.
std::optional<nft::Table> guard_table(const PortPlan& plan);

/// The steps that BridgePort takes, a line or more each, for people.
std::vector<std::string> describe(const PortPlan& plan);

/// The plan made real, in the calling thread's namespace, which is that of `host`. The TAP goes
/// with its descriptors, the rules with this object.
class BridgePort {
  public:
    /// Throws Error, and then nothing is left.
    BridgePort(const PortPlan& plan, RouteSocket& host);

    /// As Network's: given away.
    [[nodiscard]] std::vector<UniqueFd> take_tap() { return std::move(tap_.queues); }
    [[nodiscard]] std::vector<UniqueFd> take_vhost() { return std::move(vhost_); }

  private:
    Tap tap_;
    std::vector<UniqueFd> vhost_;
    nft::Socket rules_;
};

}  // namespace qvm::netns
