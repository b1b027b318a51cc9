#pragma once

#include <boost/json.hpp>
#include <string>

#include "netns/namespace.h"

/// What iproute2 and nft say, as judges that are not our code.
namespace oracle {

/// Runs a shell command in the calling thread's namespace; its stdout. A failure is a failed test.
std::string sh(const std::string& command);
/// The same inside another namespace.
std::string sh(const qvm::netns::Namespace& space, const std::string& command);
/// The same, parsed as JSON.
boost::json::value json(const std::string& command);
boost::json::value json(const qvm::netns::Namespace& space, const std::string& command);

/// Whether `address` answers a ping from `source` within a few seconds; the first packets may be
/// lost until the links have their carrier.
bool answers(const qvm::netns::Namespace& space, const std::string& address,
             const std::string& source);

/// The object of array `values` whose `key` is `value`; a null value when there is none.
boost::json::value find(const boost::json::value& values, const char* key, const char* value);

/// Waits (at most 3 s) until `command` prints nothing in the calling thread's namespace.
bool becomes_empty(const std::string& command);

/// Makes the calling process' namespace "the host", for as long as it lives: an interface wan0 with
/// 203.0.113.2/24 whose other end is 203.0.113.1 in `space`, "the internet", and a default route.
struct Internet {
    explicit Internet(unsigned mtu = 1500);
    Internet(const Internet&) = delete;
    Internet& operator=(const Internet&) = delete;
    ~Internet();

    qvm::netns::Namespace space = qvm::netns::Namespace::create();
};

}  // namespace oracle
