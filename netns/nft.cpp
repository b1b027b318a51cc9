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
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>

#include <array>
#include <cstring>
#include <limits>

#include "netns/error.h"
#include "netns/route_socket.h"

namespace qvm::netns::nft {

namespace {

// linux/netfilter/nf_tables.h of Debian 12 has it; libnftnl 1.2.4 passes the flags through.
constexpr std::uint32_t owner_flag = NFT_TABLE_F_OWNER;
// IPv4 header: RFC 791, section 3.1.
constexpr std::uint32_t source_offset = 12;
constexpr std::uint32_t destination_offset = 16;
// TCP header and its option: RFC 9293, sections 3.1 and 3.2.
constexpr std::uint32_t tcp_flags_offset = 13;
constexpr std::uint8_t tcp_syn = 0x02;
constexpr std::uint8_t maxseg_option = 2;
constexpr std::uint32_t maxseg_offset = 2;
// UDP header: RFC 768.
constexpr std::uint32_t udp_port_offset = 2;
constexpr int answer_timeout_ms = 5000;

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
    static constexpr std::array<HookFacts, 5> table{{
        {"prerouting", "filter", "prerouting", "-350", NF_INET_PRE_ROUTING, before_raw},
        {"prerouting", "nat", "prerouting", "dstnat", NF_INET_PRE_ROUTING, -100},
        {"forward", "filter", "forward", "filter", NF_INET_FORWARD, 0},
        {"postrouting", "nat", "postrouting", "srcnat", NF_INET_POST_ROUTING, 100},
        {"postrouting", "filter", "postrouting", "2147483647", NF_INET_POST_ROUTING, last},
    }};
    return table[static_cast<std::size_t>(hook)];
}

// --- text ---------------------------------------------------------------------------------------

struct ToText {
    std::string operator()(const InputInterface& m) const {
        return fmt::format("iifname \"{}\"", m.name);
    }
    std::string operator()(const OutputInterface& m) const {
        return fmt::format("oifname {}\"{}\"", m.negated ? "!= " : "", m.name);
    }
    static std::string text_of(const boost::asio::ip::network_v4& network) {
        return network.prefix_length() == 32 ? network.address().to_string() : network.to_string();
    }
    std::string operator()(const SourceNetwork& m) const {
        return "ip saddr " + text_of(m.network);
    }
    std::string operator()(const DestinationNetwork& m) const {
        return "ip daddr " + text_of(m.network);
    }
    std::string operator()(const DestinationPort& m) const {
        return fmt::format("udp dport {}", m.udp);
    }
    std::string operator()(const Trace&) const { return "meta nftrace set 1"; }
    std::string operator()(const Established&) const { return "ct state established,related"; }
    std::string operator()(const ClampMss&) const {
        return "tcp flags syn tcp option maxseg size set rt mtu";
    }
    std::string operator()(const Accept&) const { return "accept"; }
    std::string operator()(const Drop&) const { return "drop"; }
    std::string operator()(const Masquerade&) const { return "masquerade"; }
    std::string operator()(const Dnat& s) const { return "dnat to " + s.address.to_string(); }
    std::string operator()(const DnatPrefix& s) const {
        return "dnat prefix to " + s.network.to_string();
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
    void mask(Bits mask_bytes) const {
        const Bits zero = 0;
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
        compare(negated ? NFT_CMP_NEQ : NFT_CMP_EQ, padded.data(), padded.size());
    }
    void address(std::uint32_t offset, const boost::asio::ip::network_v4& network) const {
        load_payload(NFT_PAYLOAD_NETWORK_HEADER, offset, 4);
        if (network.prefix_length() < 32) {
            std::uint32_t bytes;
            std::memcpy(&bytes, network.netmask().to_bytes().data(), sizeof bytes);
            mask(bytes);
        }
        const auto bytes = network.network().to_bytes();
        compare(NFT_CMP_EQ, bytes.data(), bytes.size());
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
    void operator()(const SourceNetwork& m) const { address(source_offset, m.network); }
    void operator()(const DestinationNetwork& m) const { address(destination_offset, m.network); }
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
    void operator()(const DestinationPort& m) const {
        protocol(IPPROTO_UDP);
        load_payload(NFT_PAYLOAD_TRANSPORT_HEADER, udp_port_offset, sizeof m.udp);
        const std::uint16_t port = htons(m.udp);
        compare(NFT_CMP_EQ, &port, sizeof port);
    }
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

/// Grows a batch message by message; the buffer is far larger than any table of ours.
class Batch {
  public:
    Batch() : buffer_(64 * 1024) {
        nftnl_batch_begin(end(), sequence_++);
        advance();
    }

    /// Starts a message of nf_tables type `type`, to be filled and then closed by advance().
    nlmsghdr* message(std::uint16_t type, std::uint16_t flags) {
        return nftnl_nlmsg_build_hdr(end(), type, NFPROTO_IPV4,
                                     static_cast<std::uint16_t>(flags | NLM_F_ACK), sequence_++);
    }
    void advance() { size_ += reinterpret_cast<nlmsghdr*>(end())->nlmsg_len; }

    std::vector<char> finish() {
        nftnl_batch_end(end(), sequence_++);
        advance();
        buffer_.resize(size_);
        return std::move(buffer_);
    }

  private:
    char* end() { return buffer_.data() + size_; }

    std::vector<char> buffer_;
    std::size_t size_ = 0;
    std::uint32_t sequence_ = 0;
};

void add_table(Batch& batch, const Table& table) {
    const auto object = allocated(NftTable{nftnl_table_alloc()});
    nftnl_table_set_u32(object.get(), NFTNL_TABLE_FAMILY, NFPROTO_IPV4);
    nftnl_table_set_str(object.get(), NFTNL_TABLE_NAME, table.name.c_str());
    nftnl_table_set_u32(object.get(), NFTNL_TABLE_FLAGS, table.owned ? owner_flag : 0);
    auto* header = batch.message(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL);
    nftnl_table_nlmsg_build_payload(header, object.get());
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
    auto* header = batch.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL);
    nftnl_chain_nlmsg_build_payload(header, object.get());
    batch.advance();
}

void add_rule(Batch& batch, const Table& table, const Chain& chain, const Rule& rule) {
    const auto object = allocated(NftRule{nftnl_rule_alloc()});
    nftnl_rule_set_u32(object.get(), NFTNL_RULE_FAMILY, NFPROTO_IPV4);
    nftnl_rule_set_str(object.get(), NFTNL_RULE_TABLE, table.name.c_str());
    nftnl_rule_set_str(object.get(), NFTNL_RULE_CHAIN, facts(chain.hook).name);
    for (const auto& statement : rule) std::visit(ToExpressions{object.get()}, statement);
    auto* header = batch.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
    nftnl_rule_nlmsg_build_payload(header, object.get());
    batch.advance();
}

std::size_t count_messages(const Table& table) {
    std::size_t count = 1 + table.chains.size();
    for (const auto& chain : table.chains) count += chain.rules.size();
    return count;
}

}  // namespace

std::string to_text(const Table& table) {
    auto text = fmt::format("table ip {} {{\n", table.name);
    if (table.owned) text += "    flags owner\n";
    for (const auto& chain : table.chains) {
        const auto& hook = facts(chain.hook);
        text +=
            fmt::format("    chain {} {{\n        type {} hook {} priority {}; policy accept;\n",
                        hook.name, hook.type, hook.hook, hook.priority_name);
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
    Batch batch;
    add_table(batch, table);
    for (const auto& chain : table.chains) {
        add_chain(batch, table, chain);
        for (const auto& rule : chain.rules) add_rule(batch, table, chain, rule);
    }
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
    (void)fd.release();
}

int Socket::fd() const noexcept {
    return mnl_socket_get_fd(socket_.get());
}

void Socket::commit(const Table& table) {
    transact(encode(table), count_messages(table),
             fmt::format("create nftables table 'ip {}'", table.name));
}

void Socket::remove(const std::string& name) {
    Batch batch;
    const auto object = allocated(NftTable{nftnl_table_alloc()});
    nftnl_table_set_u32(object.get(), NFTNL_TABLE_FAMILY, NFPROTO_IPV4);
    nftnl_table_set_str(object.get(), NFTNL_TABLE_NAME, name.c_str());
    nftnl_table_nlmsg_build_payload(batch.message(NFT_MSG_DELTABLE, 0), object.get());
    batch.advance();
    transact(batch.finish(), 1, fmt::format("delete nftables table 'ip {}'", name));
}

void Socket::transact(const std::vector<char>& batch, std::size_t messages,
                      const std::string& step) {
    check(static_cast<int>(mnl_socket_sendto(socket_.get(), batch.data(), batch.size())), step);

    // On success every message is acknowledged; on failure only errors are certain to come.
    pollfd readable{mnl_socket_get_fd(socket_.get()), POLLIN, 0};
    for (std::size_t left = messages; left > 0;) {
        if (check(::poll(&readable, 1, answer_timeout_ms), step) == 0) throw Error(step, ETIMEDOUT);
        alignas(nlmsghdr) std::array<char, 16384> buffer;
        int length =
            static_cast<int>(mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size()));
        check(length, step);
        const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
        for (; mnl_nlmsg_ok(header, length); header = mnl_nlmsg_next(header, &length)) {
            if (header->nlmsg_type != NLMSG_ERROR) continue;
            const auto* ack = static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header));
            if (ack->error != 0) throw Error(step, -ack->error);
            --left;
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
