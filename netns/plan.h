#pragma once

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/address_v6.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "netns/host_network.h"
#include "netns/nft.h"

/// From what was asked for and what the host is like to a plan: values only, nothing is touched.
namespace qvm::netns {

/// What joins the namespace to the outside; see docs/architecture.md for the pictures.
enum class Mode { isolated, nat, flat };

/// "isolated", "nat" or "flat".
std::string_view to_string(Mode mode);

/// How the namespace is joined to the outside.
enum class UplinkKind {
    veth,   ///< a pair whose other end is the host's, which forwards: needs privilege there
    pasta,  ///< pasta(1), which opens the guests' connections anew from the host's namespace
};

/// "veth" or "pasta".
std::string_view to_string(UplinkKind kind);

/// What the user asked for. Unset members are the plan's to choose.
struct NetworkSpec {
    Mode mode = Mode::nat;
    UplinkKind uplink = UplinkKind::veth;  ///< of nat
    std::optional<boost::asio::ip::network_v4> subnet;
    std::optional<boost::asio::ip::address_v4> address;  ///< the guest's
    std::optional<std::string> mac;                      ///< the guest's, as aa:bb:cc:dd:ee:ff
    std::optional<unsigned> mtu;                         ///< bytes
    std::optional<boost::asio::ip::network_v4> pool;     ///< of the /31s between host and namespace
    unsigned queues = 1;
    std::string id;               ///< at most 8 characters, unique on the host
    std::string guest_name;       ///< the guest's host name in DHCP and DNS
    bool shared = false;          ///< more guests may join: a bridge, and a host address for each
    bool port_isolation = false;  ///< of shared: the guests do not see each other
    bool port_security = true;    ///< the guest sends as nobody but itself
    bool allow_host = false;      ///< of nat: the host's own addresses are open to the guests
};

/// The namespace's way to the outside: a veth pair and the host's side of it, or pasta.
struct UplinkPlan {
    UplinkKind kind = UplinkKind::veth;
    std::string host_link;   ///< veth: the host end's name
    std::string interface;   ///< the host's own way out at the start; empty where there was none
    std::string interface6;  ///< the same for IPv6
    std::vector<std::string> ways;  ///< what guests send may leave by these; see find_ways()
    std::vector<std::string> ways6;
    bool ipv6 = false;                          ///< it leads there for IPv6, too
    boost::asio::ip::address_v4 host_address;   ///< the namespace's router
    boost::asio::ip::address_v4 inner_address;  ///< nat: the VM's host address; flat: br0's
    unsigned prefix_length = 31;
    /// A shared nat network's guests as the host sees them, one to one with the subnet's first
    /// addresses.
    std::optional<boost::asio::ip::network_v4> guests;
};

/// One guest's NIC.
struct GuestPlan {
    std::string name;  ///< in DHCP and DNS
    boost::asio::ip::address_v4 address;
    std::string mac;
    unsigned queues = 1;
    bool port_security = true;
    /// Where the host reaches it; none without an uplink, or beyond UplinkPlan::guests.
    std::optional<boost::asio::ip::address_v4> host_address;
};

struct NetworkPlan {
    Mode mode = Mode::nat;
    std::string id;
    unsigned mtu = 1500;  ///< bytes, of every link and in DHCP
    boost::asio::ip::network_v4 subnet;
    boost::asio::ip::address_v4 gateway;      ///< the guests' router
    boost::asio::ip::address_v4 own_address;  ///< the namespace's; DHCP and DNS answer there
    /// The guests' IPv6 network, whose first address is the namespace's; none of flat, which is the
    /// host's own Ethernet, and none where the host has no IPv6.
    std::optional<boost::asio::ip::network_v6> subnet6;
    bool port_isolation = false;
    bool allow_host = false;
    /// TAPs are ports of br0. Without it the one TAP has the namespace's address itself: the end of
    /// a bridge holds the kernel's RTNL lock for tens of ms.
    bool bridged = false;
    std::optional<UplinkPlan> uplink;
};

/// What an uplink needs of the host, as it is just now.
struct UplinkState {
    bool link_exists = true;
    boost::asio::ip::address_v4 inner;       ///< the namespace's address, or one of its guests
    std::optional<std::string> inwards;      ///< the interface towards that
    std::optional<std::string> outwards;     ///< the interface towards the outside
    std::optional<std::string> outwards6{};  ///< the same for IPv6
};

/// The networks that a plan occupies on the host, kept from other qvm processes.
struct Claims {
    std::optional<Claim> link;    ///< nat: the /31
    std::optional<Claim> subnet;  ///< flat: the guests' subnet, which the host end shares
};

/// Interfaces of the host that forward for guests alone.
struct Borrowed {
    std::vector<std::string> ipv4;
    std::vector<std::string> ipv6;

    bool operator==(const Borrowed&) const = default;
};

/// Names inside the namespace; the same in each, since nobody else is there.
inline constexpr const char* bridge_name = "br0";
inline constexpr const char* tap_name = "tap0";  ///< of a guest that is alone
inline constexpr const char* inner_link_name = "up0";
/// Where the DNS relay listens inside the namespace, on 127.0.0.1.
inline constexpr unsigned short dns_relay_port = 5300;
/// What the name of a table for a probe (see probe.h) ends with.
inline constexpr std::string_view probe_suffix = "-probe";
/// The domain of guests' names.
inline constexpr const char* domain = "qvm";

/// The name of the host's link of the network, or VM, with that id.
std::string host_link_name(const std::string& id);

/// Throws Error unless `mac` is a NIC's own address, written as 52:54:00:12:34:56.
void check_mac(const std::string& mac);

/// Takes the networks that `spec` needs on this host. Throws Error where none is free.
Claims claim_networks(const NetworkSpec& spec, const HostNetwork& host);

/// The plan of the network. Throws Error (with the reason) for what does not fit together.
NetworkPlan make_plan(const NetworkSpec& spec, const HostNetwork& host, const Claims& claims);

/// The plan of a guest in that network, where `others` are already. Throws Error.
GuestPlan make_guest(const NetworkSpec& spec, const NetworkPlan& plan,
                     const std::vector<GuestPlan>& others = {});

/// Changes the plan of a nat network that has no guests yet to one whose uplink is pasta.
void take_pasta(NetworkPlan& plan, GuestPlan& guest);

/// Throws Error where `spec` asks for a network other than `plan`, which exists.
void check_same(const NetworkSpec& spec, const NetworkPlan& plan);

/// The interface with the namespace's own address in the subnet.
const char* lan_interface(const NetworkPlan& plan);

/// The guests' IPv6 router, its address on their link, which is always the same, and what DHCPv6
/// gives the guest with that IPv4 address.
std::optional<boost::asio::ip::address_v6> gateway6_of(const NetworkPlan& plan);
boost::asio::ip::address_v6 router_link_local();
std::optional<boost::asio::ip::address_v6> address6_of(const NetworkPlan& plan,
                                                       const boost::asio::ip::address_v4& address);
/// The IPv6 addresses of the uplink's ends: as unique on the host as those of IPv4.
boost::asio::ip::address_v6 host_address6_of(const UplinkPlan& uplink);
boost::asio::ip::address_v6 inner_address6_of(const UplinkPlan& uplink);

/// The namespace's own rules; nothing where it does not route.
std::optional<nft::Table> inner_table(const NetworkPlan& plan, const GuestPlan& guest);
/// What no guest with that MAC may send, wherever it is: as somebody else on its link, as a router,
/// as a DHCP server.
std::vector<nft::Rule> guard_rules(const std::string& mac);
/// What the guest at `tap` may send, of whatever its kernel says that it is; nothing without port
/// security.
std::optional<nft::Table> guard_table(const NetworkPlan& plan, const GuestPlan& guest,
                                      const std::string& tap);
/// With pasta, which opens connections as the host does: what keeps guests from the host's own
/// addresses, which these are; nothing where the guests may reach them.
std::optional<nft::Table> closed_table(const NetworkPlan& plan,
                                       const std::vector<boost::asio::ip::address>& host);
/// The host's rules; nothing without a veth.
std::optional<nft::Table> host_table(const NetworkPlan& plan, const Borrowed& borrowed = {});

/// Whether a link or a table of this name is of a network of ours other than `own`, an id. Pure.
bool is_of_another_network(std::string_view name, std::string_view own);

/// Why the guests do not reach the outside in this state, for people; empty where they do. Pure.
std::string trouble_of(const UplinkPlan& uplink, const UplinkState& state);

/// pasta's command line, for a namespace that it has a descriptor of as number `space`. It makes
/// inner_link_name there, with the plan's addresses and the default route. See pasta(1).
std::vector<std::string> pasta_command(const NetworkPlan& plan, int space);

/// dnsmasq's command line, to be run inside the namespace. It reads the guests from two files,
/// `dhcp-hosts` and `hosts` in `directory`, and again on SIGHUP.
std::vector<std::string> dnsmasq_command(const NetworkPlan& plan, const std::string& directory);
/// What belongs into these files.
std::string dhcp_hosts(const NetworkPlan& plan, const std::vector<GuestPlan>& guests);
std::string dns_hosts(const NetworkPlan& plan, const std::vector<GuestPlan>& guests);

/// The steps that Network takes, a line or more each, for people.
std::vector<std::string> describe(const NetworkPlan& plan, const GuestPlan& guest);

}  // namespace qvm::netns
