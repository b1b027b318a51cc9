#pragma once

#include <string>
#include <vector>

#include "netns/unique_fd.h"

namespace qvm::netns {

/// Opens a TAP with vnet_hdr in the calling thread's namespace and returns one descriptor a queue,
/// owned by the caller; the interface goes with the last of them (it is not persistent).
/// `name` must be free there. Throws Error. See Documentation/networking/tuntap.rst.
std::vector<UniqueFd> open_tap(const std::string& name, unsigned queues);

/// Opens /dev/vhost-net, once a queue; empty where it cannot be opened. Owned by the caller.
std::vector<UniqueFd> open_vhost(unsigned queues);

/// The index of an interface in the calling thread's namespace. Throws Error.
int interface_index(const std::string& name);

}  // namespace qvm::netns
