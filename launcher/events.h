#pragma once

#include <sys/socket.h>

#include <boost/json/object.hpp>
#include <string>

#include "launcher/directories.h"

namespace qvm {

/// What `qvm events` listens with, and who announces connects with: a connection is one event.
inline constexpr int event_socket = SOCK_SEQPACKET;

/// Tells every `qvm events` that something happened to a VM: {"event": ..., "name": ..., "time":
/// RFC 3339, ...`data`}. Each listens on a socket in Directories::listeners(); one that does not
/// keep up has as many events kept for it as connections fit in its backlog (net.core.somaxconn).
/// Waits for nobody and never fails.
void announce(const Directories& directories, const std::string& event, const std::string& vm,
              boost::json::object data = {}) noexcept;

/// Removes the sockets of listeners that are dead, and their directory where nobody listens.
void sweep_listeners(const Directories& directories);

}  // namespace qvm
