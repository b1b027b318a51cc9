#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <string>

#include "qmp/client.h"

using namespace qvm::qmp;
using namespace std::chrono_literals;
namespace asio = boost::asio;
using asio::awaitable;

namespace {

constexpr auto limit = 60s;

// QEMU without a machine, whose monitor is one end of a socketpair.
struct Qemu {
    int monitor = -1;  // ours; the test hands it to the client
    pid_t pid = -1;

    Qemu() {
        int fds[2];
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
        const auto chardev = "socket,id=q,fd=" + std::to_string(fds[1]);
        pid = ::fork();
        REQUIRE(pid >= 0);
        if (pid == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            ::fcntl(fds[1], F_SETFD, 0);
            ::execlp("qemu-system-x86_64", "qemu-system-x86_64", "-machine", "none", "-nodefaults",
                     "-display", "none", "-chardev", chardev.c_str(), "-mon",
                     "chardev=q,mode=control", nullptr);
            ::_exit(127);
        }
        ::close(fds[1]);
        monitor = fds[0];
    }
    ~Qemu() {
        if (pid < 0) return;
        ::kill(pid, SIGKILL);
        wait();
    }
    Qemu(const Qemu&) = delete;
    Qemu& operator=(const Qemu&) = delete;

    int wait() {
        int status = -1;
        ::waitpid(std::exchange(pid, -1), &status, 0);
        return status;
    }
};

template <typename Script>
void run(asio::io_context& context, Script script) {
    bool ended = false;
    asio::co_spawn(context, script(), [&](std::exception_ptr e) {
        if (e) std::rethrow_exception(e);
        ended = true;
    });
    while (!ended && context.run_one()) {
    }
    REQUIRE(ended);
}

}  // namespace

TEST_CASE("a session with QEMU from greeting to quit") {
    Qemu qemu;
    asio::io_context context;
    Client client(context.get_executor(), qemu.monitor);
    run(context, [&]() -> awaitable<void> {
        co_await client.handshake(limit);
        CHECK(client.greeting()->major >= 7);

        const auto version = co_await client.execute("query-version", {}, limit);
        CHECK(version.at("qemu").at("major") == client.greeting()->major);

        const auto schema = co_await client.execute("query-qmp-schema", {}, limit);
        CHECK(schema.as_array().size() > 500);
        CHECK(boost::json::serialize(schema).size() > 100'000);

        std::string error_class;
        try {
            co_await client.execute("no-such-command", {}, limit);
        } catch (const CommandError& e) {
            error_class = e.error_class;
        }
        CHECK(error_class == "CommandNotFound");

        co_await client.execute("quit", {}, limit);
        const auto shutdown = co_await client.next_event();
        REQUIRE(shutdown);
        CHECK(shutdown->name == "SHUTDOWN");
        CHECK(shutdown->data.at("reason") == "host-qmp-quit");
        CHECK(shutdown->seconds > 0);
        const auto after = co_await client.next_event();
        CHECK_FALSE(after);
        CHECK(client.closed());
    });
    const int status = qemu.wait();
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

TEST_CASE("QEMU killed under a connection") {
    Qemu qemu;
    asio::io_context context;
    Client client(context.get_executor(), qemu.monitor);
    run(context, [&]() -> awaitable<void> {
        co_await client.handshake(limit);
        ::kill(qemu.pid, SIGKILL);
        std::error_code error;
        try {
            for (;;) co_await client.execute("query-status", {}, limit);
        } catch (const std::system_error& e) {
            error = e.code();
        }
        CHECK(error == Errc::disconnected);
        const auto after = co_await client.next_event();
        CHECK_FALSE(after);
    });
}

TEST_CASE("commands beside one another, with text that needs escaping") {
    Qemu qemu;
    asio::io_context context;
    Client client(context.get_executor(), qemu.monitor);
    run(context, [&]() -> awaitable<void> { co_await client.handshake(limit); });
    int ended = 0;
    for (int i = 0; i < 20; ++i)
        asio::co_spawn(
            context,
            [&, i]() -> awaitable<void> {
                // A string, unlike a name, comes back in the message: "Parameter ... '%s'".
                const auto path = std::to_string(i) + "/\"\n\\\u00fc/";
                std::string desc;
                boost::json::object arguments({{"path", path}, {"property", "x"}});
                try {
                    co_await client.execute("qom-get", arguments, limit);
                } catch (const CommandError& e) {
                    desc = e.desc;
                }
                CHECK(desc == "Device '" + path + "' not found");
            },
            [&](std::exception_ptr e) {
                if (e) std::rethrow_exception(e);
                ++ended;
            });
    while (ended < 20 && context.run_one()) {
    }
    CHECK(ended == 20);
}
