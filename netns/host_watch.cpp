#include "netns/host_watch.h"

#include <libmnl/libmnl.h>
#include <linux/netconf.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
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

UniqueFd subscribe() {
    const char* step = "listen for changes of the host's network";
    UniqueFd fd{
        check(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE), step)};
    sockaddr_nl address{};  // a socket without an address of its own hears nothing
    address.nl_family = AF_NETLINK;
    check(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), step);
    for (const int group : {RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
                            RTNLGRP_IPV4_RULE, RTNLGRP_IPV4_NETCONF})
        check(::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group),
              step);
    // Routes that hang on a nexthop object go with it, untold. Kernels before 5.3 have none.
    const int nexthop = RTNLGRP_NEXTHOP;
    (void)::setsockopt(fd.get(), SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &nexthop, sizeof nexthop);
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

HostWatch::HostWatch(const asio::any_io_executor& executor, std::string id)
    : socket_(executor, subscribe().release()), id_(std::move(id)) {}

asio::awaitable<void> HostWatch::change() {
    do {
        co_await socket_.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
        asio::steady_timer timer{socket_.get_executor(), moment};
        co_await timer.async_wait(asio::use_awaitable);
    } while (!read_all());
}

/// Whether any of it concerns us.
bool HostWatch::read_all() {
    alignas(nlmsghdr) std::array<char, 16384> buffer;
    Subjects subjects;
    for (int reads = 0; reads < most_reads; ++reads) {
        const auto size = ::recv(socket_.native_handle(), buffer.data(), buffer.size(), 0);
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
