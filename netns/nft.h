#pragma once

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/address_v6.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "netns/unique_fd.h"

struct mnl_socket;

/// The nftables rules that qvm writes: values, their text, their netlink batch, and the socket
/// that commits (and, for owned tables, keeps) them. See nft(8) and linux/netfilter/nf_tables.h.
namespace qvm::netns::nft {

/// Matches; a rule's statements are read from left to right.
struct InputInterface {
    std::string name;
};
struct OutputInterface {
    std::string name;  ///< with `*` at its end, all that begin so
    bool negated = false;
};
/// meta nfproto ipv4, or ipv6
struct Ipv4Packet {};
struct Ipv6Packet {};
/// Of either family.
struct Network {
    Network(const boost::asio::ip::network_v4& network)  // NOLINT: what it is made of is a network
        : address(network.network()), prefix_length(network.prefix_length()) {}
    Network(const boost::asio::ip::network_v6& network)  // NOLINT
        : address(network.network()), prefix_length(network.prefix_length()) {}
    /// Of that address alone.
    explicit Network(const boost::asio::ip::address& alone)
        : address(alone), prefix_length(alone.is_v4() ? 32 : 128) {}

    boost::asio::ip::address address;
    unsigned prefix_length;
};
struct SourceNetwork {
    Network network;
};
struct DestinationNetwork {
    Network network;
};
/// fib daddr type local: the destination is one of the host's own addresses.
struct LocalDestination {};
/// th sport: of TCP, UDP and whatever else begins with it
struct TransportSource {
    std::uint16_t port;
};
/// udp sport
struct SourcePort {
    std::uint16_t udp;
};
/// udp dport
struct DestinationPort {
    std::uint16_t udp;
};
/// ether saddr; as aa:bb:cc:dd:ee:ff
struct EtherSource {
    std::string mac;
    bool negated = false;
};
/// ether type arp arp saddr ether (and ip, where it is set): who an ARP packet says that it is of
/// (RFC 826).
struct ArpSender {
    std::string mac;
    std::optional<boost::asio::ip::address_v4> address;
};
/// icmpv6 type; one of neighbor discovery (RFC 4861, section 4), 133 to 137
struct Icmpv6Type {
    std::uint8_t type;
};
/// The target of an ICMPv6 neighbor advertisement (RFC 4861, section 4.4) is in a network, whose
/// prefix ends with a byte.
struct NeighborTarget {
    boost::asio::ip::network_v6 network;
    bool negated = false;
};
/// ct state established,related
struct Established {};

/// tcp flags syn tcp option maxseg size set rt mtu: neither side sends segments that the path's
/// smallest link does not take, also where nobody hears the routers that say so (RFC 2923).
struct ClampMss {};

/// meta nftrace set 1: what becomes of the packet is told to every TraceSocket.
struct Trace {};

/// Verdicts and NAT statements.
struct Accept {};
struct Drop {};
/// reject: the sender hears that the port is unreachable.
struct Reject {};
struct Masquerade {};
struct Dnat {
    boost::asio::ip::address_v4 address;
};
/// One to one: the network's bits are exchanged, the host's bits stay (Linux 5.8).
struct DnatPrefix {
    boost::asio::ip::network_v4 network;
};

using Statement =
    std::variant<InputInterface, OutputInterface, Ipv4Packet, Ipv6Packet, SourceNetwork,
                 DestinationNetwork, LocalDestination, TransportSource, SourcePort, DestinationPort,
                 EtherSource, ArpSender, Icmpv6Type, NeighborTarget, Established, ClampMss, Trace,
                 Accept, Drop, Reject, Masquerade, Dnat, DnatPrefix>;
using Rule = std::vector<Statement>;

/// A base chain with policy accept.
struct Chain {
    enum class Hook {
        prerouting_first,   ///< before all others
        prerouting_filter,  ///< after conntrack and before NAT
        prerouting_nat,
        output_first,  ///< what the host itself sends, before all others
        forward_filter,
        postrouting_nat,
        postrouting_last,  ///< after all others
        ingress,           ///< what a device of the netdev family receives
    };
    Hook hook;
    std::vector<Rule> rules;
    std::string device{};  ///< of ingress
};

enum class Family { inet, netdev };

struct Table {
    std::string name;
    Family family = Family::inet;
    bool owned = false;  ///< NFT_TABLE_F_OWNER: lives as long as the socket that commits it
    std::vector<Chain> chains;
};

/// The table as `nft -f` would take it, without a final newline.
std::string to_text(const Table& table);

/// One netlink transaction that creates the table and fails if it exists: nfnetlink messages with
/// sequence numbers from 0, ready for a NETLINK_NETFILTER socket; the last change is acknowledged.
std::vector<char> encode(const Table& table);

/// A nfnetlink socket. It belongs to the namespace of the thread that opened it, and the tables
/// with the owner flag that it committed are deleted by the kernel when its last descriptor closes.
class Socket {
  public:
    /// Opens the socket in the calling thread's namespace. Throws Error.
    Socket();
    /// Takes over a duplicate of another one's fd(): the same socket, with the same tables. Throws
    /// Error.
    explicit Socket(UniqueFd fd);

    /// Creates the table in one transaction. Throws Error with the table's name.
    void commit(const Table& table);

    /// Creates the table, in place of one of that name. Throws Error with the table's name.
    void replace(const Table& table);

    /// Deletes a table of family inet that this socket committed, in one transaction. The kernel
    /// frees it later; the end of the socket would wait for that (an RCU grace period), one table
    /// after another. Throws Error.
    void remove(const std::string& name);

    /// Owned by this object. A duplicate keeps the tables as well as the original does.
    [[nodiscard]] int fd() const noexcept;

  private:
    void transact(std::vector<char> batch, const std::string& step);

    struct Close {
        void operator()(mnl_socket* socket) const noexcept;
    };
    std::unique_ptr<mnl_socket, Close> socket_;
    std::uint32_t sequence_ = 0;  ///< of the next message: an answer to one before is not for it
};

/// One step of a packet that is traced, as `nft monitor trace` shows them.
struct TraceStep {
    enum class Verdict { goes_on, accepted, dropped };
    std::string family;  ///< "ip", "inet", ...
    std::string table;
    std::string chain;
    std::uint64_t rule = 0;  ///< its handle; 0: the chain's policy
    Verdict verdict = Verdict::goes_on;
    std::uint32_t packet = 0;  ///< the same in all steps of one
};

/// Hears what becomes of traced packets in the namespace of the thread that opened it. To be kept:
/// as with Socket, its end soon after a change waits for an RCU grace period.
class TraceSocket {
  public:
    /// Listens. Throws Error.
    void start();
    /// Listens no more. Throws Error.
    void stop();
    /// The steps that come within `patience_ms`, some at least; nothing where none come. Throws
    /// Error.
    std::vector<TraceStep> read(int patience_ms);

  private:
    void set_membership(int option);

    Socket socket_;
};

}  // namespace qvm::netns::nft
