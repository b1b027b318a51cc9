#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace qvm::netns {

/// One kind of thing, and what there is of it: a line each.
struct PictureSection {
    std::string name;                ///< "link"
    std::vector<std::string> lines;  ///< "eth0 index 2 mtu 1500 up"
};
using HostPicture = std::vector<PictureSection>;

/// Whether a link or an nftables table of this name is left out, with all that hangs on it.
using IsOthers = std::function<bool(std::string_view name)>;

/// The network that the calling thread is in, as text to compare: links, addresses, routes and
/// policy rules of both families, what nftables has, and the sysctls of both families. What changes
/// by itself is not in it: lifetimes, counters, carrier, elements of sets, cached routes. What this
/// user may not read or this kernel does not have is left out.
///
/// Forwarding that is on only since living processes have leases in `leases` (see ForwardingLease)
/// is off in the picture. Throws Error.
HostPicture read_host_picture(const std::filesystem::path& leases, const IsOthers& is_others);

}  // namespace qvm::netns
