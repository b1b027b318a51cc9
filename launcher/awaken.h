#pragma once

#include <boost/json/object.hpp>
#include <chrono>
#include <string>

namespace qvm {

/// What a guest is told that has been saved as another machine, before anything else runs in it.
struct Awakening {
    std::string name;  ///< its host name, from now on
    std::chrono::system_clock::time_point now;
    std::string random;   ///< for its entropy pool, hexadecimal digits: 32 bytes or more
    std::string boot_id;  ///< random_uuid()
};

/// A new UUID, as /proc/sys/kernel/random/boot_id has one. Throws Failure.
std::string random_uuid();

/// The script of shell functions that tell it, and the line that calls them; what the guest has no
/// means for is left as it was. Pure.
std::string awaken_functions();
std::string awaken_call(const Awakening& awakening);

/// The arguments of guest-exec (qga/qapi-schema.json) for that and then the user's own shell script
/// (empty: none), whose output is captured and whose exit status is the end. Pure.
boost::json::object awaken_arguments(const Awakening& awakening, const std::string& hook);

}  // namespace qvm
