#include "launcher/exec_service.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <catch2/catch.hpp>
#include <functional>
#include <string>
#include <vector>

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

}  // namespace

TEST_CASE("a command's sockets stay open until QEMU's devices have let go of them") {
    const Temporary directory;
    asio::io_context context{1};
    const auto monitor_ends = socket_pair();
    const auto agent_ends = socket_pair();
    Peer qemu{context, monitor_ends[1]};
    Peer guest{context, agent_ends[1]};
    qmp::Client monitor{context.get_executor(), monitor_ends[0]};
    qmp::Client agent{context.get_executor(), agent_ends[0], qmp::Dialect::guest_agent};
    asio::co_spawn(context, qemu.play(), asio::detached);
    asio::co_spawn(context, guest.play(), asio::detached);

    const auto script = [&]() -> awaitable<void> {
        qemu.say(qemu_greeting);
        co_await monitor.handshake(10s);
        co_await agent.handshake(10s);
        ExecService service{context.get_executor(),
                            listen_on(directory.path / "exec.sock", SOCK_SEQPACKET), monitor, agent,
                            10s};
        service.agent_is_up();
        auto client = service.connect();
        const std::string request =
            R"({"argv": ["true"], "environment": [], "secret": "s", "directory": "", "user": ""})";
        REQUIRE(send_with_fds(client.get(), request, {}));
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
    };
    run(context, script);
}
