#include "netns/host_watch.h"

#include <libmnl/libmnl.h>
#include <linux/filter.h>
#include <linux/netconf.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <map>
#include <set>

#include "netns/attributes.h"
#include "netns/error.h"
#include "netns/plan.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::milliseconds moment{100};
// Where there is always one more, what there is has to do for now.
constexpr int most_reads = 1000;

constexpr const char* listen_step = "listen for changes of the host's network";

UniqueFd open_netlink(int protocol) {
    UniqueFd fd{check(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol),
                      listen_step)};
    sockaddr_nl address{};  // a socket without an address of its own hears nothing
    address.nl_family = AF_NETLINK;
    check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), listen_step);
    return fd;
}

void join(const UniqueFd& fd, int group) {
    check(::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group),
          listen_step);
}

UniqueFd subscribe_routes() {
    auto fd = open_netlink(NETLINK_ROUTE);
    for (const int group : {RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
                            RTNLGRP_IPV4_RULE, RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_IFADDR,
                            RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_IPV6_NETCONF})
        join(fd, group);
    // Routes that hang on a nexthop object go with it, untold. Kernels before 5.3 have none.
    const int nexthop = RTNLGRP_NEXTHOP;
    (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &nexthop, sizeof nexthop);
    return fd;
}

/// Passes what the kernel tells of nftables (see nf_tables_fill_*_info() in its nf_tables_api.c)
/// but for tables whose names begin as ours do: theirs come and go with each VM. A transaction's
/// changes come in one packet, whose first one is looked at; each begins with its table's name.
void filter_rules(const UniqueFd& fd) {
    constexpr std::uint32_t type_at = offsetof(nlmsghdr, nlmsg_type);
    constexpr std::uint32_t name_at = NLMSG_HDRLEN + sizeof(nfgenmsg) + NLA_HDRLEN;
    constexpr std::uint32_t ours = 'q' << 24 | 'v' << 16 | 'm' << 8 | '-';
    // Loads are in network byte order. What ends every transaction has no table.
    const auto generation = htons(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN);
    std::array<sock_filter, 6> program{{
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, type_at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, generation, 2, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, name_at),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ours, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 0),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
    }};
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    check(::setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter),
          listen_step);
}

UniqueFd subscribe_rules() {
    auto fd = open_netlink(NETLINK_NETFILTER);
    filter_rules(fd);
    join(fd, NFNLGRP_NFTABLES);
    return fd;
}

/// Which interfaces messages are about: that is all that is read of them, since what is the case
/// now is asked for anew.
class Subjects {
  public:
    void add(const char* data, int size) {
        const auto* header = reinterpret_cast<const nlmsghdr*>(data);
        for (; mnl_nlmsg_ok(header, size); header = mnl_nlmsg_next(header, &size)) add(*header);
    }

    /// What is not about one interface.
    void add_other() { indexes_.insert(0); }

    [[nodiscard]] bool concern(const std::string& id) const {
        return std::any_of(indexes_.begin(), indexes_.end(),
                           [&](int index) { return !is_of_another_network(name_of(index), id); });
    }

  private:
    void add(const nlmsghdr& header) {
        switch (header.nlmsg_type) {
            case RTM_NEWLINK:
            case RTM_DELLINK: {
                const int index = payload<ifinfomsg>(header).ifi_index;
                if (const auto* name = attribute(header, sizeof(ifinfomsg), IFLA_IFNAME))
                    names_[index] = mnl_attr_get_str(name);
                indexes_.insert(index);
                return;
            }
            case RTM_NEWADDR:
            case RTM_DELADDR:
                indexes_.insert(static_cast<int>(payload<ifaddrmsg>(header).ifa_index));
                return;
            case RTM_NEWROUTE:
            case RTM_DELROUTE:
                return add_index(attribute(header, sizeof(rtmsg), RTA_OIF));
            case RTM_NEWNETCONF:
            case RTM_DELNETCONF:
                return add_index(attribute(header, sizeof(netconfmsg), NETCONFA_IFINDEX));
            default:
                add_other();
        }
    }

    void add_index(const nlattr* index) {
        indexes_.insert(index != nullptr ? static_cast<int>(mnl_attr_get_u32(index)) : 0);
    }

    template <typename T>
    static const T& payload(const nlmsghdr& header) {
        return *static_cast<const T*>(mnl_nlmsg_get_payload(&header));
    }

    static const nlattr* attribute(const nlmsghdr& header, std::size_t offset, int type) {
        const nlattr* found = nullptr;
        for_each_attribute(header, offset, [&](const nlattr& each) {
            if (mnl_attr_get_type(&each) == type) found = &each;
        });
        return found;
    }

    /// Empty where it has none.
    [[nodiscard]] std::string name_of(int index) const {
        if (const auto known = names_.find(index); known != names_.end()) return known->second;
        std::array<char, IF_NAMESIZE> name{};
        return ::if_indextoname(static_cast<unsigned>(index), name.data()) != nullptr ? name.data()
                                                                                      : "";
    }

    std::map<int, std::string> names_;
    std::set<int> indexes_;
};

}  // namespace

HostWatch::HostWatch(const asio::any_io_executor& executor, std::string id, bool firewall)
    : routes_(executor, subscribe_routes().release()), rules_(executor), id_(std::move(id)) {
    if (firewall) rules_.assign(subscribe_rules().release());
}

asio::awaitable<void> HostWatch::change() {
    using namespace asio::experimental::awaitable_operators;
    constexpr auto readable = asio::posix::stream_descriptor::wait_read;
    for (;;) {
        if (rules_.is_open())
            co_await (routes_.async_wait(readable, asio::use_awaitable) ||
                      rules_.async_wait(readable, asio::use_awaitable));
        else
            co_await routes_.async_wait(readable, asio::use_awaitable);
        asio::steady_timer timer{routes_.get_executor(), moment};
        co_await timer.async_wait(asio::use_awaitable);
        const bool rules = rules_.is_open() && read_rules();
        const bool routes = read_routes();
        if (rules || routes) co_return;
    }
}

/// Whether there was anything: what, is asked anew.
bool HostWatch::read_rules() {
    std::array<char, 16384> buffer;
    bool any = false;
    for (int reads = 0; reads < most_reads; ++reads) {
        const auto size = ::recv(rules_.native_handle(), buffer.data(), buffer.size(), 0);
        if (size < 0 && errno == EINTR) continue;
        if (size < 0 && errno != ENOBUFS) break;  // some were lost
        any = true;
    }
    return any;
}

/// Whether any of it concerns us.
bool HostWatch::read_routes() {
    alignas(nlmsghdr) std::array<char, 16384> buffer;
    Subjects subjects;
    for (int reads = 0; reads < most_reads; ++reads) {
        const auto size = ::recv(routes_.native_handle(), buffer.data(), buffer.size(), 0);
        if (size >= 0)
            subjects.add(buffer.data(), static_cast<int>(size));
        else if (errno == ENOBUFS)
            subjects.add_other();  // some were lost
        else if (errno != EINTR)
            break;
    }
    return subjects.concern(id_);
}

}  // namespace qvm::netns
