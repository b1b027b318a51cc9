#include "launcher/guest_port.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto connect_patience = 1s;  // then the kernel's own pauses are too long
constexpr auto banner_patience = 10s;  // with a guest that is slow
constexpr auto pause_between = 100ms;

}  // namespace

GuestPort::GuestPort(const asio::any_io_executor& executor, const netns::Namespace& space,
                     tcp::endpoint endpoint, std::string banner)
    : executor_(executor),
      sockets_(space, SOCK_STREAM),
      endpoint_(std::move(endpoint)),
      banner_(std::move(banner)) {}

std::string GuestPort::problem() const {
    return fmt::format("{} port {}: {}", endpoint_.address().to_string(), endpoint_.port(),
                       problem_);
}

awaitable<void> GuestPort::until_open() {
    asio::steady_timer timer{executor_};
    for (;;) {
        problem_ = co_await find_problem();
        if (problem_.empty()) co_return;
        timer.expires_after(pause_between);
        co_await timer.async_wait(asio::use_awaitable);
    }
}

awaitable<std::string> GuestPort::find_problem() {
    using namespace asio::experimental::awaitable_operators;
    if (!sockets_.prepare()) co_return "no descriptors";
    tcp::socket socket{executor_};
    auto fd = sockets_.take();
    socket.assign(tcp::v4(), fd.get());
    (void)fd.release();
    asio::steady_timer late{executor_, connect_patience};
    const auto connected =
        co_await (socket.async_connect(endpoint_, no_throw) || late.async_wait(no_throw));
    if (connected.index() != 0) co_return "no answer";
    const auto [error] = std::get<0>(connected);
    if (error) co_return error == asio::error::host_unreachable ? "no answer" : error.message();
    if (banner_.empty()) co_return "";
    const bool heard = co_await hears_banner(socket);
    co_return heard ? "" : "is open, and its server says nothing";
}

awaitable<bool> GuestPort::hears_banner(tcp::socket& socket) {
    using namespace asio::experimental::awaitable_operators;
    std::string text(banner_.size(), '\0');
    asio::steady_timer late{executor_, banner_patience};
    const auto read = co_await (asio::async_read(socket, asio::buffer(text), no_throw) ||
                                late.async_wait(no_throw));
    co_return read.index() == 0 && text == banner_;
}

}  // namespace qvm
