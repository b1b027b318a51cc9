#include "launcher/guest_ports.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "launcher/failure.h"
#include "launcher/flag.h"

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

tcp::endpoint guest_endpoint(NetOption::Mode mode,
                             const std::optional<asio::ip::address_v4>& address,
                             const std::vector<PublishOption>& published, std::uint16_t port) {
    if (mode == NetOption::Mode::none)
        throw Failure("a guest with --net none has no network", "qvm exec needs none");
    if (mode == NetOption::Mode::bridge)
        throw Failure("the address of a guest with --net bridge=IF is its LAN's, not qvm's to know",
                      "qvm exec needs none");
    if (mode != NetOption::Mode::user) return {address.value_or(asio::ip::address_v4::any()), port};
    for (const auto& way : published)
        if (way.guest_port == port && !way.udp && way.host_address.is_v4())
            return {way.host_address, way.host_port};
    throw Failure(fmt::format("--net user has no way to the guest's port {}", port),
                  fmt::format("-p 0:{} makes one; qvm exec needs none", port));
}

awaitable<void> GuestPorts::until_open(WaitForOption stage) {
    const bool ssh = stage.stage == WaitForOption::Stage::ssh;
    if (const auto name = to_string(stage); !ports_.contains(name)) {
        auto port = std::make_shared<Port>();
        port->endpoint = ways_.endpoint(ssh ? ssh_port : stage.port);
        port->banner = ssh ? "SSH-" : "";  // RFC 4253, section 4.2
        ports_.emplace(name, std::move(port));
    }
    const auto port = ports_.at(to_string(stage));
    asio::steady_timer timer{executor_};
    while (!port->is_open) {
        if (!port->is_tried) {
            const Flag trying{port->is_tried};
            port->problem = co_await find_problem(*port);
            port->is_open = port->problem.empty();
        }
        if (port->is_open) co_return;
        timer.expires_after(pause_between);
        co_await timer.async_wait(asio::use_awaitable);
    }
}

std::string GuestPorts::problem(const WaitForOption& stage) const {
    const auto found = ports_.find(to_string(stage));
    if (found == ports_.end()) return "was not tried";
    const auto& port = *found->second;
    return fmt::format("{} port {}: {}", port.endpoint.address().to_string(), port.endpoint.port(),
                       port.problem);
}

void GuestPorts::guest_restarts() {
    for (auto& [stage, port] : ports_) port->is_open = false, port->problem = "no answer";
}

awaitable<std::string> GuestPorts::find_problem(const Port& port) {
    using namespace asio::experimental::awaitable_operators;
    UniqueFd fd;
    ways_.space().run([&fd] { fd.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); });
    if (!fd) co_return "no descriptors";
    tcp::socket socket{executor_};
    socket.assign(tcp::v4(), fd.get());
    (void)fd.release();
    asio::steady_timer late{executor_, connect_patience};
    const auto connected =
        co_await (socket.async_connect(port.endpoint, no_throw) || late.async_wait(no_throw));
    if (connected.index() != 0) co_return "no answer";
    const auto [error] = std::get<0>(connected);
    if (error) co_return error == asio::error::host_unreachable ? "no answer" : error.message();
    if (port.banner.empty()) co_return "";
    const bool heard = co_await hears(socket, port.banner);
    co_return heard ? "" : "is open, and its server says nothing";
}

awaitable<bool> GuestPorts::hears(tcp::socket& socket, std::string banner) {
    using namespace asio::experimental::awaitable_operators;
    std::string text(banner.size(), '\0');
    asio::steady_timer late{executor_, banner_patience};
    const auto read = co_await (asio::async_read(socket, asio::buffer(text), no_throw) ||
                                late.async_wait(no_throw));
    co_return read.index() == 0 && text == banner;
}

}  // namespace qvm
