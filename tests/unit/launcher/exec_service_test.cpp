#include "launcher/exec_service.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <catch2/catch.hpp>
#include <functional>
#include <string>
#include <vector>

#include "launcher/base64.h"
#include "launcher/guest_command.h"
#include "launcher/qemu_command.h"
#include "tests/unit/launcher/peer.h"
#include "tests/unit/launcher/temporary.h"

namespace asio = boost::asio;
namespace json = boost::json;
using namespace qvm;
using namespace std::chrono_literals;
using asio::awaitable;
using asio::use_awaitable;

// No co_await inside Catch2's macros: they name the expression twice, and GCC 12 runs it twice.

namespace {

bool is_over(const UniqueFd& socket) {
    char byte = 0;
    return ::recv(socket.get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0;
}

/// What is ready is done, whatever it makes ready in turn; `done` comes true by that.
awaitable<void> until(const std::function<bool()>& done) {
    const auto executor = co_await asio::this_coro::executor;
    for (int i = 0; i < 1000 && !done(); ++i) co_await asio::post(executor, use_awaitable);
}

using Script = std::function<awaitable<void>(qmp::Client& monitor, qmp::Client& agent)>;

/// A QEMU and an agent that answer.
struct Machine {
    void play(const Script& script) {
        qmp::Client monitor{context.get_executor(), monitor_ends[0]};
        qmp::Client agent{context.get_executor(), agent_ends[0], qmp::Dialect::guest_agent};
        asio::co_spawn(context, qemu.play(), asio::detached);
        asio::co_spawn(context, guest.play(), asio::detached);
        const auto whole = [&]() -> awaitable<void> {
            qemu.say(qemu_greeting);
            co_await monitor.handshake(10s);
            co_await agent.handshake(10s);
            co_await script(monitor, agent);
        };
        run(context, whole);
    }

    ExecService serve(qmp::Client& monitor, qmp::Client& agent, ExecService::ReadyPorts ready) {
        return {context.get_executor(),
                listen_on(directory.path / "exec.sock", SOCK_SEQPACKET),
                monitor,
                agent,
                10s,
                std::move(ready)};
    }

    const Temporary directory;
    asio::io_context context{1};
    const std::array<int, 2> monitor_ends = socket_pair();
    const std::array<int, 2> agent_ends = socket_pair();
    Peer qemu{context, monitor_ends[1]};
    Peer guest{context, agent_ends[1]};
};

constexpr const char* true_request =
    R"({"argv": ["true"], "environment": [], "secret": "s", "directory": "", "user": ""})";

std::string all_of(const UniqueFd& socket) {
    std::array<char, 65536> bytes;
    const auto size = ::recv(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    return {bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(size, 0))};
}

}  // namespace

TEST_CASE("a command's sockets stay open until QEMU's devices have let go of them") {
    Machine machine;
    auto& qemu = machine.qemu;
    auto& guest = machine.guest;
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service = machine.serve(monitor, agent, ExecService::ReadyPorts{});
        service.agent_is_up();
        auto client = service.connect();
        REQUIRE(send_with_fds(client.get(), true_request, {}));
        co_await until([&] { return guest.count("guest-exec") == 1; });
        const std::vector<std::string> ports{"exec-in-1", "exec-out-1", "exec-err-1"};
        for (const auto& port : ports) service.port_changed(port, true);
        REQUIRE(send_with_fds(client.get(), R"({"pid": 0})", {}));
        REQUIRE(receive_with_fds(client.get(), 1000));  // a socket with something unread is reset
        client.reset();
        co_await until([&] { return guest.count("guest-exec-status") == 1; });
        co_await until([] { return false; });

        REQUIRE(qemu.count("device_del") == 3);
        REQUIRE(qemu.given.size() == 3);
        for (const auto& socket : qemu.given) CHECK_FALSE(is_over(socket));
        CHECK(qemu.count("chardev-remove") == 0);

        for (const auto& port : ports) service.device_deleted(port);
        co_await until([&] { return is_over(qemu.given.back()); });
        CHECK(qemu.count("chardev-remove") == 3);
        for (const auto& socket : qemu.given) CHECK(is_over(socket));
    });
}

TEST_CASE("a shell that waits has its command before the client has its streams") {
    Machine machine;
    auto& guest = machine.guest;
    std::vector<SocketPair> ready;
    std::vector<UniqueFd> ports;  // as QEMU has them
    for (int i = 0; i < 3; ++i) {
        ready.push_back(make_socket_pair("test"));
        ports.emplace_back(::dup(ready.back().theirs.get()));
    }
    const bool has_news = GENERATE(true, false);
    const Awakening news{.name = "web-2", .now = {}, .random = "00", .boot_id = "11"};
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service =
            machine.serve(monitor, agent, ExecService::ReadyPorts{5, std::move(ready), 7});
        CHECK(service.ready_shell() == 7);
        if (has_news) service.begin_with(news);
        auto client = service.connect();
        REQUIRE(send_with_fds(client.get(), true_request, {}));
        co_await until([] { return false; });
        // Who is not told in its own words has to wait until the agent could tell the guest.
        if (!has_news) {
            CHECK(all_of(ports[0]).empty());
            service.agent_is_up();
            co_await until([] { return false; });
        }
        CHECK(all_of(ports[0]) == std::string{"s\n"} + (has_news ? awaken_call(news) : "") +
                                      "set -- s '' '' '' -- true\ns\n");
        const auto answer = receive_with_fds(client.get(), 1000);
        REQUIRE(answer);
        REQUIRE(answer->fds.size() == 3);
        CHECK(guest.count("guest-exec") == 0);
        CHECK(service.ready_shell() == 0);
        CHECK_FALSE(service.ready_ports());
        // The client and the port are joined by now.
        REQUIRE(::send(answer->fds[0].get(), "in", 2, 0) == 2);
        CHECK(all_of(ports[0]) == "in");
        // A second one goes the usual way.
        if (has_news) service.agent_is_up();
        auto second = service.connect();
        REQUIRE(send_with_fds(second.get(), true_request, {}));
        co_await until([&] { return guest.count("guest-exec") == 1; });
        CHECK(guest.count("guest-exec") == 1);
        // Of a shell that ends without a word the agent is asked.
        service.port_changed("exec-err-5", false);
        co_await until([&] { return guest.count("guest-exec-status") == 1; });
        CHECK(guest.count("guest-exec-status") == 1);
    });
}

TEST_CASE("a shell that waits tells the guest its news, and is prepared anew for the next") {
    Machine machine;
    auto& guest = machine.guest;
    std::vector<SocketPair> ready;
    std::vector<UniqueFd> ports;  // as QEMU has them
    for (int i = 0; i < 3; ++i) {
        ready.push_back(make_socket_pair("test"));
        ports.emplace_back(::dup(ready.back().theirs.get()));
    }
    const Awakening news{.name = "web-2", .now = {}, .random = "00", .boot_id = "11"};
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service =
            machine.serve(monitor, agent, ExecService::ReadyPorts{5, std::move(ready), 7});
        guest.replies["guest-exec-status"].assign(1000, json::object{{"exited", false}});
        std::optional<bool> told;
        asio::co_spawn(
            machine.context, [&]() -> awaitable<void> { told = co_await service.tell(news); },
            asio::detached);
        co_await until([] { return false; });
        CHECK(all_of(ports[0]).find("\n" + awaken_call(news)) == 8);
        CHECK_FALSE(told);
        // Who comes meanwhile has his turn after that.
        auto client = service.connect();
        REQUIRE(send_with_fds(client.get(), true_request, {}));
        co_await until([] { return false; });
        CHECK(all_of(ports[0]).empty());
        REQUIRE(::send(ports[2].get(), "ready\n", 6, 0) == 6);
        co_await until([&] { return told.has_value(); });
        CHECK(told == true);
        CHECK(service.ready_shell() == 7);
        client.reset();
        co_await until([] { return false; });
        service.agent_is_up();
        std::shared_ptr<void> hold;
        asio::co_spawn(
            machine.context, [&]() -> awaitable<void> { hold = co_await service.quiet(true); },
            asio::detached);
        co_await until([] { return false; });
        CHECK(all_of(ports[0]).find(std::string{"\n"} + guest_prepares) == 8);
        CHECK(hold == nullptr);
        REQUIRE(::send(ports[2].get(), "ready\n", 6, 0) == 6);
        co_await until([&] { return hold != nullptr; });
        CHECK(hold != nullptr);
        CHECK(service.ready_shell() == 7);
        CHECK(service.ready_ports() == 5);
    });
}

TEST_CASE("a guest is told its news with the first command that it takes") {
    Machine machine;
    auto& guest = machine.guest;
    const Awakening news{.name = "web-2", .now = {}, .random = "00", .boot_id = "11"};
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service = machine.serve(monitor, agent, ExecService::ReadyPorts{});
        service.agent_is_up();
        service.begin_with(news);
        guest.refusals = {"guest-exec"};
        for (int i = 1; i <= 3; ++i) {
            auto client = service.connect();
            REQUIRE(send_with_fds(client.get(), true_request, {}));
            co_await until([&] { return guest.count("guest-exec") == i; });
            REQUIRE(guest.last.at("execute") == "guest-exec");
            const auto data = guest.last.at("arguments").at("input-data").as_string();
            const auto script = from_base64(data);
            CHECK((script.find(awaken_call(news)) != std::string::npos) == (i < 3));
            co_await until([] { return false; });
            for (const char* stream : stream_names)
                service.port_changed(port_id(stream, static_cast<unsigned long>(i)), true);
            co_await until([] { return false; });
        }
    });
}

TEST_CASE("a shell that is gone, or a command that is too long for it, waits for nobody") {
    Machine machine;
    auto& qemu = machine.qemu;
    auto& guest = machine.guest;
    std::vector<SocketPair> ready;
    for (int i = 0; i < 3; ++i) ready.push_back(make_socket_pair("test"));
    const bool gone = GENERATE(true, false);
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service =
            machine.serve(monitor, agent, ExecService::ReadyPorts{5, std::move(ready), 7});
        service.agent_is_up();
        if (gone) service.port_changed("exec-err-5", false);
        CHECK(service.ready_shell() == (gone ? 0 : 7));
        auto client = service.connect();
        const std::string word(gone ? 4 : 40'000, 'x');
        REQUIRE(send_with_fds(
            client.get(),
            R"({"argv": [")" + word +
                R"("], "environment": [], "secret": "s", "directory": "", "user": ""})",
            {}));
        co_await until([&] { return guest.count("guest-exec") == 1; });
        CHECK(guest.count("guest-exec") == 1);
        CHECK(qemu.count("device_add") == (gone ? 0 : 3));
        CHECK(service.ready_ports().has_value() == !gone);
    });
}

TEST_CASE("a machine that is saved has a shell that waits, at ports of its own") {
    Machine machine;
    auto& qemu = machine.qemu;
    auto& guest = machine.guest;
    std::vector<SocketPair> ready;
    for (int i = 0; i < 3; ++i) ready.push_back(make_socket_pair("test"));
    const bool opens = GENERATE(true, false);
    const json::object runs{{"exited", false}};
    machine.play([&](qmp::Client& monitor, qmp::Client& agent) -> awaitable<void> {
        auto service =
            machine.serve(monitor, agent, ExecService::ReadyPorts{5, std::move(ready), 0});
        service.agent_is_up();
        const auto tell = [&](unsigned long tag, bool open) {
            for (const auto* stream : stream_names)
                service.port_changed(port_id(stream, tag), open);
        };
        auto client = service.connect();
        REQUIRE(send_with_fds(client.get(), true_request, {}));
        co_await until([&] { return guest.count("guest-exec") == 1; });
        tell(5, true);
        co_await until([] { return false; });
        CHECK(qemu.count("device_add") == 0);
        tell(5, false);
        client.reset();
        co_await until([&] { return qemu.count("device_del") == 3; });
        for (const auto* stream : stream_names) service.device_deleted(port_id(stream, 5));
        // It has ended at once where it does not open them.
        if (opens) guest.replies["guest-exec-status"].assign(1000, runs);
        std::shared_ptr<void> hold;
        asio::co_spawn(
            machine.context, [&]() -> awaitable<void> { hold = co_await service.quiet(true); },
            asio::detached);
        for (int i = 0; i < 1000 && guest.count("guest-exec") < 2; ++i) {
            asio::steady_timer timer{machine.context, 5ms};
            co_await timer.async_wait(use_awaitable);
        }
        CHECK(guest.count("guest-exec") == 2);
        CHECK(qemu.count("device_add") == 3);
        CHECK(hold == nullptr);
        if (opens) REQUIRE(::send(qemu.given.back().get(), "ready\n", 6, 0) == 6);
        for (int i = 0; i < 1000 && !hold; ++i) {
            asio::steady_timer timer{machine.context, 5ms};
            co_await timer.async_wait(use_awaitable);
        }
        CHECK(hold != nullptr);
        CHECK(service.ready_shell() == (opens ? 7 : 0));
        CHECK(service.ready_ports() == 6);
    });
}
