#pragma once

#include <string>
#include <vector>

#include "netns/unique_fd.h"

namespace qvm::netns {

/// A TAP's descriptors, one a queue. The interface goes with the last of them.
struct Tap {
    std::string name;
    std::vector<UniqueFd> queues;
};

/// Opens a TAP with vnet_hdr in the calling thread's namespace. A name with "%d" gets the first
/// number that is free there; one without must be free. Throws Error.
/// See Documentation/networking/tuntap.rst.
Tap open_tap(const std::string& name, unsigned queues);

/// Opens /dev/vhost-net, once a queue; empty where it cannot be opened. Owned by the caller.
std::vector<UniqueFd> open_vhost(unsigned queues);

/// The index of an interface in the calling thread's namespace. Throws Error.
int interface_index(const std::string& name);

}  // namespace qvm::netns
