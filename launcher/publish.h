#pragma once

#include <string>
#include <vector>

#include "launcher/values.h"

namespace qvm {

/// QEMU's own forwarding for --net user: "tcp:127.0.0.1:8080-:80" (qemu(1), hostfwd). Throws
/// Failure for what it cannot do.
std::string host_forward(const PublishOption& publish);

/// Puts the ports that QEMU has bound, from the text of its `info usernet`, in the place of those
/// that are 0. Pure.
void take_forwarded_ports(const std::string& info_usernet, std::vector<PublishOption>& ports);

}  // namespace qvm
