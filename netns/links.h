#pragma once

#include <boost/asio/ip/address.hpp>
#include <string>

#include "netns/route_socket.h"

/// Requests for RouteSocket::transact(): pure values, nothing happens before they are sent.
/// Interfaces are meant in the namespace of the socket that sends them.
namespace qvm::netns {

/// A veth pair: `name` with index `index` where the request is sent, its peer born as `peer` in
/// the namespace of descriptor `peer_namespace` (borrowed until the request was sent). Born there
/// and not moved: moving a device waits for an RCU barrier (tens of ms). MTU in bytes.
Request add_veth(const std::string& name, int index, const std::string& peer, int peer_namespace,
                 unsigned mtu);

/// A bridge without STP, with a fixed MAC so that ports coming and going do not change it.
Request add_bridge(const std::string& name, int index, const std::string& mac, unsigned mtu);

/// Puts interface `index` up; with `master` != 0 it becomes a port of that bridge, with `mtu` != 0
/// it gets that MTU (bytes). `name` is for the error only.
Request set_up(const std::string& name, int index, int master = 0, unsigned mtu = 0);

/// Gives interface `index` that MAC.
Request set_mac(const std::string& name, int index, const std::string& mac);

/// Keeps the kernel from giving interface `index` a link-local IPv6 address of its own.
Request without_link_local(const std::string& name, int index);

/// Keeps what comes in at bridge port `index` from all other ports that are isolated, too.
Request isolate_port(const std::string& name, int index);

/// An address with its prefix length on interface `index`; one of IPv6 is there at once, without
/// asking whether others have it (RFC 4862, section 5.4).
Request add_address(const std::string& name, int index, const boost::asio::ip::address& address,
                    unsigned prefix_length);

/// A route to a network (0.0.0.0/0, ::/0: the default route) through `gateway` on interface
/// `index`.
Request add_route(const boost::asio::ip::address& network, unsigned prefix_length, int index,
                  const boost::asio::ip::address& gateway);

/// Deletes an interface; with a veth both ends go.
Request delete_link(const std::string& name, int index);

}  // namespace qvm::netns
