#include "netns/nft.h"

#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <libnftnl/batch.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/table.h>
#include <libnftnl/trace.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_nat.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "netns/error.h"
#include "netns/route_socket.h"

namespace qvm::netns::nft {

namespace {

// linux/netfilter/nf_tables.h of Debian 12 has it; libnftnl 1.2.4 passes the flags through.
constexpr std::uint32_t owner_flag = NFT_TABLE_F_OWNER;
// IPv4 header: RFC 791, section 3.1; IPv6 header: RFC 8200, section 3.
constexpr std::uint32_t source_offset = 12;
constexpr std::uint32_t destination_offset = 16;
constexpr std::uint32_t source6_offset = 8;
constexpr std::uint32_t destination6_offset = 24;
// ICMPv6: RFC 4861, section 4.4.
constexpr std::uint32_t neighbor_target_offset = 8;
// Ethernet header (IEEE 802.3), and ARP for IPv4 over it: RFC 826.
constexpr std::uint32_t ether_source_offset = 6;
constexpr std::uint32_t arp_sender_mac_offset = 8;
constexpr std::uint32_t arp_sender_ip_offset = 14;
// TCP header and its option: RFC 9293, sections 3.1 and 3.2.
constexpr std::uint32_t tcp_flags_offset = 13;
constexpr std::uint8_t tcp_syn = 0x02;
constexpr std::uint8_t maxseg_option = 2;
constexpr std::uint32_t maxseg_offset = 2;
// UDP header: RFC 768.
constexpr std::uint32_t udp_source_offset = 0;
constexpr std::uint32_t udp_destination_offset = 2;
constexpr int answer_timeout_ms = 5000;
constexpr std::size_t usual_batch = 64 * 1024;  // bytes, for which every socket has room

struct HookFacts {
    const char* name;
    const char* type;
    const char* hook;
    const char* priority_name;
    std::uint32_t number;
    std::int32_t priority;
};

const HookFacts& facts(Chain::Hook hook) {
    constexpr std::int32_t before_raw = -350;
    constexpr std::int32_t last = std::numeric_limits<std::int32_t>::max();
    static constexpr std::array<HookFacts, 8> table{{
        {"prerouting", "filter", "prerouting", "-350", NF_INET_PRE_ROUTING, before_raw},
        {"mangle", "filter", "prerouting", "mangle", NF_INET_PRE_ROUTING, -150},
        {"prerouting", "nat", "prerouting", "dstnat", NF_INET_PRE_ROUTING, -100},
        {"output", "filter", "output", "-350", NF_INET_LOCAL_OUT, before_raw},
        {"forward", "filter", "forward", "filter", NF_INET_FORWARD, 0},
        {"postrouting", "nat", "postrouting", "srcnat", NF_INET_POST_ROUTING, 100},
        {"postrouting", "filter", "postrouting", "2147483647", NF_INET_POST_ROUTING, last},
        {"ingress", "filter", "ingress", "filter", NF_NETDEV_INGRESS, 0},
    }};
    return table[static_cast<std::size_t>(hook)];
}

const char* name_of(Family family) {
    return family == Family::inet ? "inet" : "netdev";
}

std::uint32_t number_of(Family family) {
    return family == Family::inet ? NFPROTO_INET : NFPROTO_NETDEV;
}

std::array<std::uint8_t, 6> bytes_of_mac(const std::string& mac) {
    std::array<std::uint8_t, 6> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i)
        bytes[i] = static_cast<std::uint8_t>(std::stoul(mac.substr(3 * i, 2), nullptr, 16));
    return bytes;
}

// --- text ---------------------------------------------------------------------------------------

struct ToText {
    std::string operator()(const InputInterface& m) const {
        return fmt::format("iifname \"{}\"", m.name);
    }
    std::string operator()(const OutputInterface& m) const {
        return fmt::format("oifname {}\"{}\"", m.negated ? "!= " : "", m.name);
    }
    std::string operator()(const Ipv4Packet&) const { return "meta nfproto ipv4"; }
    std::string operator()(const Ipv6Packet&) const { return "meta nfproto ipv6"; }
    static std::string text_of(const char* which, const Network& network) {
        const bool alone = network.prefix_length == (network.address.is_v4() ? 32 : 128);
        return fmt::format("{} {} {}{}", network.address.is_v4() ? "ip" : "ip6", which,
                           network.address.to_string(),
                           alone ? "" : fmt::format("/{}", network.prefix_length));
    }
    std::string operator()(const SourceNetwork& m) const { return text_of("saddr", m.network); }
    std::string operator()(const DestinationNetwork& m) const {
        return text_of("daddr", m.network);
    }
    std::string operator()(const LocalDestination&) const { return "fib daddr type local"; }
    std::string operator()(const TransportSource& m) const {
        return fmt::format("th sport {}", m.port);
    }
    std::string operator()(const SourcePort& m) const { return fmt::format("udp sport {}", m.udp); }
    std::string operator()(const DestinationPort& m) const {
        return fmt::format("udp dport {}", m.udp);
    }
    std::string operator()(const EtherSource& m) const {
        return fmt::format("ether saddr {}{}", m.negated ? "!= " : "", m.mac);
    }
    std::string operator()(const ArpSender& m) const {
        const auto text = fmt::format("arp saddr ether {}", m.mac);
        return m.address ? text + " arp saddr ip " + m.address->to_string() : text;
    }
    std::string operator()(const Icmpv6Type& m) const {
        // As nft(8) names them, from the first that it has a name for on.
        constexpr std::array names{"nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit",
                                   "nd-neighbor-advert", "nd-redirect"};
        constexpr std::uint8_t first = 133;
        return fmt::format("icmpv6 type {}", names.at(m.type - std::size_t{first}));
    }
    std::string operator()(const NeighborTarget& m) const {
        std::string bits;
        const auto bytes = m.network.network().to_bytes();
        for (unsigned i = 0; i < m.network.prefix_length() / 8U; ++i)
            bits += fmt::format("{:02x}", bytes.at(i));
        return fmt::format("@th,{},{} {}0x{}", neighbor_target_offset * 8,
                           m.network.prefix_length(), m.negated ? "!= " : "", bits);
    }
    std::string operator()(const Trace&) const { return "meta nftrace set 1"; }
    std::string operator()(const Established&) const { return "ct state established,related"; }
    std::string operator()(const ClampMss&) const {
        return "tcp flags syn tcp option maxseg size set rt mtu";
    }
    std::string operator()(const Accept&) const { return "accept"; }
    std::string operator()(const Drop&) const { return "drop"; }
    std::string operator()(const Reject&) const { return "reject"; }
    std::string operator()(const Masquerade&) const { return "masquerade"; }
    std::string operator()(const Dnat& s) const { return "dnat ip to " + s.address.to_string(); }
    std::string operator()(const DnatPrefix& s) const {
        return "dnat ip prefix to " + s.network.to_string();
    }
};

// --- netlink ------------------------------------------------------------------------------------

template <auto Function>
struct Free {
    void operator()(auto* object) const noexcept { Function(object); }
};
using NftTable = std::unique_ptr<nftnl_table, Free<nftnl_table_free>>;
using NftChain = std::unique_ptr<nftnl_chain, Free<nftnl_chain_free>>;
using NftRule = std::unique_ptr<nftnl_rule, Free<nftnl_rule_free>>;

template <typename Object>
Object allocated(Object object) {
    if (!object) throw Error("allocate nft object", ENOMEM);
    return object;
}

/// Appends a statement's expressions to a rule; libnftnl's rule owns them.
struct ToExpressions {
    nftnl_rule* rule;
    Family family;

    nftnl_expr* add(const char* name) const {
        auto* expression = nftnl_expr_alloc(name);
        if (expression == nullptr) throw Error("allocate nft expression", ENOMEM);
        nftnl_rule_add_expr(rule, expression);
        return expression;
    }
    void compare(std::uint32_t op, const void* data, std::size_t size) const {
        auto* e = add("cmp");
        nftnl_expr_set_u32(e, NFTNL_EXPR_CMP_SREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_CMP_OP, op);
        nftnl_expr_set(e, NFTNL_EXPR_CMP_DATA, data, static_cast<std::uint32_t>(size));
    }
    template <typename Bits>
    void mask(const Bits& mask_bytes) const {
        const Bits zero{};
        auto* e = add("bitwise");
        nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_SREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_DREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_BITWISE_LEN, sizeof mask_bytes);
        nftnl_expr_set(e, NFTNL_EXPR_BITWISE_MASK, &mask_bytes, sizeof mask_bytes);
        nftnl_expr_set(e, NFTNL_EXPR_BITWISE_XOR, &zero, sizeof zero);
    }
    void load_payload(std::uint32_t base, std::uint32_t offset, std::uint32_t length) const {
        auto* e = add("payload");
        nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_BASE, base);
        nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_DREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_OFFSET, offset);
        nftnl_expr_set_u32(e, NFTNL_EXPR_PAYLOAD_LEN, length);
    }
    void load_meta(std::uint32_t key) const {
        auto* e = add("meta");
        nftnl_expr_set_u32(e, NFTNL_EXPR_META_KEY, key);
        nftnl_expr_set_u32(e, NFTNL_EXPR_META_DREG, NFT_REG_1);
    }
    void interface(std::uint32_t key, const std::string& name, bool negated) const {
        load_meta(key);
        std::array<char, IFNAMSIZ> padded{};
        name.copy(padded.data(), padded.size() - 1);
        const auto length = name.ends_with('*') ? name.size() - 1 : padded.size();
        compare(negated ? NFT_CMP_NEQ : NFT_CMP_EQ, padded.data(), length);
    }
    /// That the packet is of this protocol, as <linux/if_ether.h> numbers them.
    void ether_type(std::uint16_t type) const {
        if (family == Family::inet) {
            load_meta(NFT_META_NFPROTO);
            const std::uint8_t number = type == ETH_P_IPV6 ? NFPROTO_IPV6 : NFPROTO_IPV4;
            return compare(NFT_CMP_EQ, &number, sizeof number);
        }
        load_meta(NFT_META_PROTOCOL);
        const std::uint16_t number = htons(type);
        compare(NFT_CMP_EQ, &number, sizeof number);
    }
    /// Of the bytes that were loaded, those of the network's prefix.
    template <typename Bytes>
    void compare_prefix(const Bytes& bytes, unsigned prefix_length, std::uint32_t op) const {
        Bytes prefix{};
        for (std::size_t i = 0; i < prefix.size(); ++i) {
            const auto bits =
                std::clamp(static_cast<int>(prefix_length) - 8 * static_cast<int>(i), 0, 8);
            prefix[i] =
                static_cast<typename Bytes::value_type>(0xff00U >> static_cast<unsigned>(bits));
        }
        if (prefix_length < 8 * prefix.size()) mask(prefix);
        compare(op, bytes.data(), bytes.size());
    }
    void address(std::uint32_t offset, std::uint32_t offset6, const Network& network) const {
        const auto& any = network.address;
        ether_type(any.is_v4() ? ETH_P_IP : ETH_P_IPV6);
        load_payload(NFT_PAYLOAD_NETWORK_HEADER, any.is_v4() ? offset : offset6,
                     any.is_v4() ? 4 : 16);
        if (any.is_v4())
            compare_prefix(any.to_v4().to_bytes(), network.prefix_length, NFT_CMP_EQ);
        else
            compare_prefix(any.to_v6().to_bytes(), network.prefix_length, NFT_CMP_EQ);
    }
    void verdict(std::uint32_t value) const {
        auto* e = add("immediate");
        nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_DREG, NFT_REG_VERDICT);
        nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_VERDICT, value);
    }

    void operator()(const InputInterface& m) const { interface(NFT_META_IIFNAME, m.name, false); }
    void operator()(const OutputInterface& m) const {
        interface(NFT_META_OIFNAME, m.name, m.negated);
    }
    void operator()(const Ipv4Packet&) const { ether_type(ETH_P_IP); }
    void operator()(const Ipv6Packet&) const { ether_type(ETH_P_IPV6); }
    void operator()(const SourceNetwork& m) const {
        address(source_offset, source6_offset, m.network);
    }
    void operator()(const DestinationNetwork& m) const {
        address(destination_offset, destination6_offset, m.network);
    }
    void operator()(const LocalDestination&) const {
        auto* e = add("fib");
        nftnl_expr_set_u32(e, NFTNL_EXPR_FIB_DREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
        nftnl_expr_set_u32(e, NFTNL_EXPR_FIB_FLAGS, NFTA_FIB_F_DADDR);
        const std::uint32_t local = RTN_LOCAL;
        compare(NFT_CMP_EQ, &local, sizeof local);
    }
    void operator()(const EtherSource& m) const {
        load_meta(NFT_META_IIFTYPE);
        const std::uint16_t ethernet = ARPHRD_ETHER;
        compare(NFT_CMP_EQ, &ethernet, sizeof ethernet);
        load_payload(NFT_PAYLOAD_LL_HEADER, ether_source_offset, 6);
        const auto bytes = bytes_of_mac(m.mac);
        compare(m.negated ? NFT_CMP_NEQ : NFT_CMP_EQ, bytes.data(), bytes.size());
    }
    void operator()(const ArpSender& m) const {
        ether_type(ETH_P_ARP);
        load_payload(NFT_PAYLOAD_NETWORK_HEADER, arp_sender_mac_offset, 6);
        const auto bytes = bytes_of_mac(m.mac);
        compare(NFT_CMP_EQ, bytes.data(), bytes.size());
        if (!m.address) return;
        load_payload(NFT_PAYLOAD_NETWORK_HEADER, arp_sender_ip_offset, 4);
        const auto address = m.address->to_bytes();
        compare(NFT_CMP_EQ, address.data(), address.size());
    }
    void operator()(const Icmpv6Type& m) const {
        ether_type(ETH_P_IPV6);
        protocol(IPPROTO_ICMPV6);
        load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, sizeof m.type);
        compare(NFT_CMP_EQ, &m.type, sizeof m.type);
    }
    void operator()(const NeighborTarget& m) const {
        const auto length = m.network.prefix_length() / 8U;
        load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, neighbor_target_offset, length);
        const auto bytes = m.network.network().to_bytes();
        compare(m.negated ? NFT_CMP_NEQ : NFT_CMP_EQ, bytes.data(), length);
    }
    void operator()(const Established&) const {
        auto* e = add("ct");
        nftnl_expr_set_u32(e, NFTNL_EXPR_CT_KEY, NFT_CT_STATE);
        nftnl_expr_set_u32(e, NFTNL_EXPR_CT_DREG, NFT_REG_1);
        mask<std::uint32_t>(NF_CT_STATE_BIT(IP_CT_ESTABLISHED) | NF_CT_STATE_BIT(IP_CT_RELATED));
        const std::uint32_t zero = 0;
        compare(NFT_CMP_NEQ, &zero, sizeof zero);
    }
    void protocol(std::uint8_t number) const {
        load_meta(NFT_META_L4PROTO);
        compare(NFT_CMP_EQ, &number, sizeof number);
    }
    void operator()(const TransportSource& m) const { port(udp_source_offset, m.port); }
    void udp_port(std::uint32_t offset, std::uint16_t number) const {
        protocol(IPPROTO_UDP);
        port(offset, number);
    }
    void port(std::uint32_t offset, std::uint16_t number) const {
        load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, offset, sizeof number);
        const std::uint16_t bytes = htons(number);
        compare(NFT_CMP_EQ, &bytes, sizeof bytes);
    }
    void operator()(const SourcePort& m) const { udp_port(udp_source_offset, m.udp); }
    void operator()(const DestinationPort& m) const { udp_port(udp_destination_offset, m.udp); }
    void operator()(const Trace&) const {
        const std::uint8_t on = 1;
        auto* e = add("immediate");
        nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_DREG, NFT_REG_1);
        nftnl_expr_set(e, NFTNL_EXPR_IMM_DATA, &on, sizeof on);
        e = add("meta");
        nftnl_expr_set_u32(e, NFTNL_EXPR_META_KEY, NFT_META_NFTRACE);
        nftnl_expr_set_u32(e, NFTNL_EXPR_META_SREG, NFT_REG_1);
    }
    void operator()(const ClampMss&) const {
        protocol(IPPROTO_TCP);
        load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, tcp_flags_offset, 1);
        mask(tcp_syn);
        const std::uint8_t zero = 0;
        compare(NFT_CMP_NEQ, &zero, sizeof zero);
        auto* e = add("rt");
        nftnl_expr_set_u32(e, NFTNL_EXPR_RT_KEY, NFT_RT_TCPMSS);
        nftnl_expr_set_u32(e, NFTNL_EXPR_RT_DREG, NFT_REG_1);
        e = add("byteorder");
        nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_SREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_DREG, NFT_REG_1);
        nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_OP, NFT_BYTEORDER_HTON);
        nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_LEN, sizeof(std::uint16_t));
        nftnl_expr_set_u32(e, NFTNL_EXPR_BYTEORDER_SIZE, sizeof(std::uint16_t));
        e = add("exthdr");
        nftnl_expr_set_u32(e, NFTNL_EXPR_EXTHDR_SREG, NFT_REG_1);
        nftnl_expr_set_u8(e, NFTNL_EXPR_EXTHDR_TYPE, maxseg_option);
        nftnl_expr_set_u32(e, NFTNL_EXPR_EXTHDR_OFFSET, maxseg_offset);
        nftnl_expr_set_u32(e, NFTNL_EXPR_EXTHDR_LEN, sizeof(std::uint16_t));
        nftnl_expr_set_u32(e, NFTNL_EXPR_EXTHDR_OP, NFT_EXTHDR_OP_TCPOPT);
    }
    void operator()(const Accept&) const { verdict(NF_ACCEPT); }
    void operator()(const Drop&) const { verdict(NF_DROP); }
    void operator()(const Reject&) const {
        auto* e = add("reject");
        nftnl_expr_set_u32(e, NFTNL_EXPR_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH);
        nftnl_expr_set_u8(e, NFTNL_EXPR_REJECT_CODE, NFT_REJECT_ICMPX_PORT_UNREACH);
    }
    void operator()(const Masquerade&) const { add("masq"); }
    void load(std::uint32_t target, const boost::asio::ip::address_v4& value) const {
        const auto bytes = value.to_bytes();
        auto* e = add("immediate");
        nftnl_expr_set_u32(e, NFTNL_EXPR_IMM_DREG, target);
        nftnl_expr_set(e, NFTNL_EXPR_IMM_DATA, bytes.data(), bytes.size());
    }
    nftnl_expr* dnat() const {
        auto* e = add("nat");
        nftnl_expr_set_u32(e, NFTNL_EXPR_NAT_TYPE, NFT_NAT_DNAT);
        nftnl_expr_set_u32(e, NFTNL_EXPR_NAT_FAMILY, NFPROTO_IPV4);
        nftnl_expr_set_u32(e, NFTNL_EXPR_NAT_REG_ADDR_MIN, NFT_REG_1);
        return e;
    }
    void operator()(const Dnat& s) const {
        load(NFT_REG_1, s.address);
        dnat();
    }
    void operator()(const DnatPrefix& s) const {
        load(NFT_REG_1, s.network.network());
        load(NFT_REG_2, s.network.broadcast());
        auto* e = dnat();
        nftnl_expr_set_u32(e, NFTNL_EXPR_NAT_REG_ADDR_MAX, NFT_REG_2);
        nftnl_expr_set_u32(e, NFTNL_EXPR_NAT_FLAGS, NF_NAT_RANGE_NETMAP);
    }
};

/// Grows a batch message by message.
class Batch {
  public:
    explicit Batch(Family family) : family_(number_of(family)) {
        make_room();
        nftnl_batch_begin(end(), sequence_++);
        advance();
    }

    /// Starts a message of nf_tables type `type`, to be filled and then closed by advance().
    nlmsghdr* message(std::uint16_t type, std::uint16_t flags) {
        make_room();
        last_ = size_;
        return nftnl_nlmsg_build_hdr(end(), type, static_cast<std::uint16_t>(family_), flags,
                                     sequence_++);
    }
    void advance() { size_ += reinterpret_cast<nlmsghdr*>(end())->nlmsg_len; }

    std::vector<char> finish() {
        // Errors come unasked, and answers to all might be more than a socket takes.
        reinterpret_cast<nlmsghdr*>(buffer_.data() + last_)->nlmsg_flags |= NLM_F_ACK;
        make_room();
        nftnl_batch_end(end(), sequence_++);
        advance();
        buffer_.resize(size_);
        return std::move(buffer_);
    }

  private:
    char* end() { return buffer_.data() + size_; }
    /// A rule has a dozen expressions of some tens of bytes.
    void make_room() {
        constexpr std::size_t longest = 8 * 1024;
        if (buffer_.size() - size_ < longest) buffer_.resize(2 * buffer_.size() + longest);
    }

    std::uint32_t family_;
    std::vector<char> buffer_;
    std::size_t size_ = 0;
    std::size_t last_ = 0;  ///< where the last message begins
    std::uint32_t sequence_ = 0;
};

void add_table(Batch& batch, const Table& table, std::uint16_t flags = NLM_F_EXCL) {
    const auto object = allocated(NftTable{nftnl_table_alloc()});
    nftnl_table_set_u32(object.get(), NFTNL_TABLE_FAMILY, number_of(table.family));
    nftnl_table_set_str(object.get(), NFTNL_TABLE_NAME, table.name.c_str());
    nftnl_table_set_u32(object.get(), NFTNL_TABLE_FLAGS, table.owned ? owner_flag : 0);
    auto* header =
        batch.message(NFT_MSG_NEWTABLE, static_cast<std::uint16_t>(NLM_F_CREATE | flags));
    nftnl_table_nlmsg_build_payload(header, object.get());
    batch.advance();
}

void delete_table(Batch& batch, const std::string& name) {
    const auto object = allocated(NftTable{nftnl_table_alloc()});
    nftnl_table_set_str(object.get(), NFTNL_TABLE_NAME, name.c_str());
    nftnl_table_nlmsg_build_payload(batch.message(NFT_MSG_DELTABLE, 0), object.get());
    batch.advance();
}

void add_chain(Batch& batch, const Table& table, const Chain& chain) {
    const auto& hook = facts(chain.hook);
    const auto object = allocated(NftChain{nftnl_chain_alloc()});
    nftnl_chain_set_str(object.get(), NFTNL_CHAIN_TABLE, table.name.c_str());
    nftnl_chain_set_str(object.get(), NFTNL_CHAIN_NAME, hook.name);
    nftnl_chain_set_str(object.get(), NFTNL_CHAIN_TYPE, hook.type);
    nftnl_chain_set_u32(object.get(), NFTNL_CHAIN_HOOKNUM, hook.number);
    nftnl_chain_set_s32(object.get(), NFTNL_CHAIN_PRIO, hook.priority);
    nftnl_chain_set_u32(object.get(), NFTNL_CHAIN_POLICY, NF_ACCEPT);
    if (!chain.device.empty())
        nftnl_chain_set_str(object.get(), NFTNL_CHAIN_DEV, chain.device.c_str());
    auto* header = batch.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL);
    nftnl_chain_nlmsg_build_payload(header, object.get());
    batch.advance();
}

void add_rule(Batch& batch, const Table& table, const Chain& chain, const Rule& rule) {
    const auto object = allocated(NftRule{nftnl_rule_alloc()});
    nftnl_rule_set_u32(object.get(), NFTNL_RULE_FAMILY, number_of(table.family));
    nftnl_rule_set_str(object.get(), NFTNL_RULE_TABLE, table.name.c_str());
    nftnl_rule_set_str(object.get(), NFTNL_RULE_CHAIN, facts(chain.hook).name);
    for (const auto& statement : rule)
        std::visit(ToExpressions{object.get(), table.family}, statement);
    auto* header = batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    nftnl_rule_nlmsg_build_payload(header, object.get());
    batch.advance();
}

void add_with_chains(Batch& batch, const Table& table) {
    add_table(batch, table);
    for (const auto& chain : table.chains) {
        add_chain(batch, table, chain);
        for (const auto& rule : chain.rules) add_rule(batch, table, chain, rule);
    }
}

}  // namespace

std::string to_text(const Table& table) {
    auto text = fmt::format("table {} {} {{\n", name_of(table.family), table.name);
    if (table.owned) text += "    flags owner\n";
    for (const auto& chain : table.chains) {
        const auto& hook = facts(chain.hook);
        text +=
            fmt::format("    chain {} {{\n        type {} hook {} {}priority {}; policy accept;\n",
                        hook.name, hook.type, hook.hook,
                        chain.device.empty() ? "" : fmt::format("device \"{}\" ", chain.device),
                        hook.priority_name);
        for (const auto& rule : chain.rules) {
            text += "       ";
            for (const auto& statement : rule) text += ' ' + std::visit(ToText{}, statement);
            text += '\n';
        }
        text += "    }\n";
    }
    return text + "}";
}

std::vector<char> encode(const Table& table) {
    Batch batch{table.family};
    add_with_chains(batch, table);
    return batch.finish();
}

void Socket::Close::operator()(mnl_socket* socket) const noexcept {
    mnl_socket_close(socket);
}

Socket::Socket() : socket_(mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC)) {
    if (!socket_) throw Error("open nfnetlink socket", errno);
    check(mnl_socket_bind(socket_.get(), 0, MNL_SOCKET_AUTOPID), "bind nfnetlink socket");
}

Socket::Socket(UniqueFd fd) : socket_(mnl_socket_fdopen(fd.get())) {
    if (!socket_) throw Error("take over a nfnetlink socket", errno);
    // What the process before us was told may be queued still, with numbers that began at 0.
    constexpr int space_of_one_process = 12;  // bits
    sequence_ = static_cast<std::uint32_t>(::getpid()) << space_of_one_process;
    (void)fd.release();
}

int Socket::fd() const noexcept {
    return mnl_socket_get_fd(socket_.get());
}

void Socket::commit(const Table& table) {
    transact(encode(table),
             fmt::format("create nftables table '{} {}'", name_of(table.family), table.name));
}

void Socket::replace(const Table& table) {
    Batch batch{table.family};
    add_table(batch, table, 0);  // so that there is one to delete
    delete_table(batch, table.name);
    add_with_chains(batch, table);
    transact(batch.finish(),
             fmt::format("replace nftables table '{} {}'", name_of(table.family), table.name));
}

void Socket::remove(const std::string& name) {
    Batch batch{Family::inet};
    delete_table(batch, name);
    transact(batch.finish(), fmt::format("delete nftables table 'inet {}'", name));
}

void Socket::transact(std::vector<char> batch, const std::string& step) {
    const auto first = sequence_;
    std::uint32_t last = first;  // the one that is acknowledged
    int left = static_cast<int>(batch.size());
    for (auto* header = reinterpret_cast<nlmsghdr*>(batch.data()); mnl_nlmsg_ok(header, left);
         header = mnl_nlmsg_next(header, &left)) {
        header->nlmsg_seq = sequence_++;
        if ((header->nlmsg_flags & NLM_F_ACK) != 0) last = header->nlmsg_seq;
    }
    if (batch.size() > usual_batch) {
        // As root beyond what the host allows everybody.
        const int room = 2 * static_cast<int>(batch.size());
        if (::setsockopt(fd(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) != 0)
            (void)::setsockopt(fd(), SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    check(static_cast<int>(mnl_socket_sendto(socket_.get(), batch.data(), batch.size())), step);

    // An error comes before that, and what is told of earlier batches is told too late.
    pollfd readable{fd(), POLLIN, 0};
    for (bool answered = false; !answered;) {
        if (check(::poll(&readable, 1, answer_timeout_ms), step) == 0) throw Error(step, ETIMEDOUT);
        alignas(nlmsghdr) std::array<char, 16384> buffer;
        int length =
            static_cast<int>(mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size()));
        check(length, step);
        const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
        for (; mnl_nlmsg_ok(header, length); header = mnl_nlmsg_next(header, &length)) {
            if (header->nlmsg_type != NLMSG_ERROR || header->nlmsg_seq - first >= sequence_ - first)
                continue;
            const auto* ack = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
            if (ack->error != 0) throw Error(step, -ack->error);
            answered = answered || header->nlmsg_seq == last;
        }
    }
}

namespace {

using NftTrace = std::unique_ptr<nftnl_trace, Free<nftnl_trace_free>>;

const char* name_of_family(std::uint32_t family) {
    switch (family) {
        case NFPROTO_IPV4:
            return "ip";
        case NFPROTO_IPV6:
            return "ip6";
        case NFPROTO_INET:
            return "inet";
        case NFPROTO_NETDEV:
            return "netdev";
        case NFPROTO_BRIDGE:
            return "bridge";
        default:
            return "?";
    }
}

TraceStep::Verdict verdict_of(std::uint32_t code) {
    if (code == NF_DROP) return TraceStep::Verdict::dropped;
    return code == NF_ACCEPT ? TraceStep::Verdict::accepted : TraceStep::Verdict::goes_on;
}

TraceStep step_of(const nlmsghdr* header) {
    const auto trace = allocated(NftTrace{nftnl_trace_alloc()});
    if (nftnl_trace_nlmsg_parse(header, trace.get()) < 0)
        throw Error("follow a packet through nftables", errno);
    const auto text = [&](std::uint16_t attribute) {
        const char* value = nftnl_trace_is_set(trace.get(), attribute)
                                ? nftnl_trace_get_str(trace.get(), attribute)
                                : nullptr;
        return std::string{value != nullptr ? value : ""};
    };
    TraceStep step;
    step.family = name_of_family(nftnl_trace_get_u32(trace.get(), NFTNL_TRACE_FAMILY));
    step.table = text(NFTNL_TRACE_TABLE);
    step.chain = text(NFTNL_TRACE_CHAIN);
    step.packet = nftnl_trace_get_u32(trace.get(), NFTNL_TRACE_ID);
    const auto type = nftnl_trace_get_u32(trace.get(), NFTNL_TRACE_TYPE);
    if (type == NFT_TRACETYPE_RULE) {
        step.rule = nftnl_trace_get_u64(trace.get(), NFTNL_TRACE_RULE_HANDLE);
        step.verdict = verdict_of(nftnl_trace_get_u32(trace.get(), NFTNL_TRACE_VERDICT));
    } else if (type == NFT_TRACETYPE_POLICY) {
        step.verdict = verdict_of(nftnl_trace_get_u32(trace.get(), NFTNL_TRACE_POLICY));
    }
    return step;
}

}  // namespace

void TraceSocket::set_membership(int option) {
    const int group = NFNLGRP_NFTRACE;
    check(::setsockopt(socket_.fd(), SOL_NETLINK, option, &group, sizeof group),
          "listen for traces of nftables");
}

void TraceSocket::start() {
    std::array<char, 1024> left_over;  // from the last time
    while (::recv(socket_.fd(), left_over.data(), left_over.size(), MSG_DONTWAIT) >= 0 ||
           errno == ENOBUFS) {
    }
    set_membership(NETLINK_ADD_MEMBERSHIP);
}

void TraceSocket::stop() {
    set_membership(NETLINK_DROP_MEMBERSHIP);
}

std::vector<TraceStep> TraceSocket::read(int patience_ms) {
    const std::string step = "follow a packet through nftables";
    pollfd readable{socket_.fd(), POLLIN, 0};
    std::vector<TraceStep> steps;
    if (check(::poll(&readable, 1, patience_ms), step) == 0) return steps;
    alignas(nlmsghdr) std::array<char, 16384> buffer;
    int length =
        check(static_cast<int>(::recv(socket_.fd(), buffer.data(), buffer.size(), 0)), step);
    const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
    for (; mnl_nlmsg_ok(header, length); header = mnl_nlmsg_next(header, &length))
        if (header->nlmsg_type == (NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE))
            steps.push_back(step_of(header));
    return steps;
}

}  // namespace qvm::netns::nft
