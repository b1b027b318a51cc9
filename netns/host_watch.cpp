#include "netns/host_watch.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>

#include "netns/error.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::milliseconds moment{100};

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
    return fd;
}

/// What changed is asked for anew; that something did is all that the messages say.
void drain(int fd) {
    std::array<char, 16384> buffer;
    while (::recv(fd, buffer.data(), buffer.size(), 0) >= 0 || errno == ENOBUFS || errno == EINTR) {
    }
}

}  // namespace

HostWatch::HostWatch(const asio::any_io_executor& executor)
    : socket_(executor, subscribe().release()) {}

asio::awaitable<void> HostWatch::change() {
    co_await socket_.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
    asio::steady_timer timer{socket_.get_executor(), moment};
    co_await timer.async_wait(asio::use_awaitable);
    drain(socket_.native_handle());
}

}  // namespace qvm::netns
