#include "qmp/client.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/json/parse.hpp>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace qvm::qmp;
using namespace std::chrono_literals;
namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using asio::use_awaitable;
using namespace asio::experimental::awaitable_operators;

// No co_await inside Catch2's macros: they name the expression twice, and GCC 12 runs it twice.

namespace {

// For what must not happen in time, and for what must happen at all.
constexpr auto at_once = 1ms;
constexpr auto for_ever = 60s;

const std::string greeting =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}})"
    "\r\n";

using Socket = asio::local::stream_protocol::socket;

// What came in one piece, and the descriptor that came with it, or -1.
std::pair<std::string, int> received_with_descriptor(int socket) {
    std::array<char, 4096> text;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec data{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const auto size = ::recvmsg(socket, &message, 0);
    int fd = -1;
    if (const auto* header = CMSG_FIRSTHDR(&message); header != nullptr)
        std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return {std::string(text.data(), static_cast<std::size_t>(std::max(size, 0L))), fd};
}

// The other end of the client's socket, moved by the test's own script.
struct Peer {
    Socket socket;
    std::string input;

    awaitable<json::object> receive() {
        const auto size = co_await asio::async_read_until(socket, asio::dynamic_buffer(input), '\n',
                                                          use_awaitable);
        auto line = input.substr(0, size);
        input.erase(0, size);
        if (line.front() == '\xff') line.erase(0, 1);
        co_return json::parse(line).as_object();
    }

    awaitable<std::pair<std::string, int>> receive_with_descriptor() {
        co_await socket.async_wait(asio::socket_base::wait_read, use_awaitable);
        co_return received_with_descriptor(socket.native_handle());
    }

    awaitable<void> send(std::string text) {
        co_await asio::async_write(socket, asio::buffer(text), use_awaitable);
    }

    awaitable<void> answer(const json::object& command, std::string value = "{}") {
        const auto id = std::to_string(command.at("id").to_number<std::uint64_t>());
        co_await send("{\"return\": " + value + ", \"id\": " + id + "}\n");
    }

    awaitable<void> negotiate() {
        co_await send(greeting);
        co_await answer(co_await receive());
    }
};

struct Fixture {
    asio::io_context context;
    Peer peer{Socket(context), {}};
    std::unique_ptr<Client> client;

    explicit Fixture(Dialect dialect = Dialect::qmp) {
        Socket ours(context);
        asio::local::connect_pair(ours, peer.socket);
        client = std::make_unique<Client>(context.get_executor(), ours.release(), dialect);
    }

    // Runs scripts side by side until all have ended; what one throws comes out here.
    template <typename... Scripts>
    void run(Scripts... scripts) {
        std::size_t ended = 0;
        (asio::co_spawn(context, scripts(),
                        [&](std::exception_ptr e) {
                            if (e) std::rethrow_exception(e);
                            ++ended;
                        }),
         ...);
        context.restart();
        while (ended < sizeof...(scripts) && context.run_one()) {
        }
        REQUIRE(ended == sizeof...(scripts));
    }

    void handshake() {
        run([&] { return peer.negotiate(); }, [&] { return client->handshake(for_ever); });
    }

    awaitable<json::value> execute(std::string command,
                                   std::chrono::milliseconds timeout = for_ever) {
        return client->execute(command, {}, timeout);
    }
};

template <typename T>
awaitable<std::error_code> error_of(awaitable<T> call) {
    try {
        co_await std::move(call);
    } catch (const std::system_error& e) {
        co_return e.code();
    }
    co_return std::error_code();
}

awaitable<bool> any_event(Client& client) {
    co_return (co_await client.next_event()).has_value();
}

}  // namespace

TEST_CASE("handshake and a command") {
    Fixture f;
    f.handshake();
    CHECK(f.client->greeting()->minor == 2);
    f.run(
        [&]() -> awaitable<void> {
            const auto command = co_await f.peer.receive();
            CHECK(command.at("execute") == "query-status");
            CHECK(command.at("arguments") == json::object({{"a", 1}}));
            co_await f.peer.answer(command, "{\"status\": \"running\"}");
        },
        [&]() -> awaitable<void> {
            json::object arguments({{"a", 1}});
            const auto value = co_await f.client->execute("query-status", arguments, for_ever);
            CHECK(value.at("status") == "running");
        });
    CHECK_FALSE(f.client->closed());
}

TEST_CASE("a handshake where there is nothing to be done ends at once") {
    Fixture f;
    f.handshake();
    f.run([&] { return f.client->handshake(for_ever); });
    f.client->close();
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(f.client->handshake(for_ever));
        CHECK(error == Errc::closed);
    });
}

TEST_CASE("a descriptor goes with its own command, and no other") {
    Fixture f;
    f.handshake();
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    f.run(
        [&]() -> awaitable<void> {
            std::string before, with;
            int fd = -1;
            while (with.find('\n') == std::string::npos) {
                auto [text, descriptor] = co_await f.peer.receive_with_descriptor();
                if (descriptor >= 0) fd = descriptor;
                (fd < 0 ? before : with) += text;
            }
            CHECK(before.find("cont") != std::string::npos);
            CHECK(before.ends_with("\n"));
            CHECK(with.starts_with("{"));
            CHECK(with.find("getfd") != std::string::npos);
            CHECK(::write(fd, "x", 1) == 1);
            ::close(fd);
            f.peer.input = before + with;
            for (int i = 0; i < 3; ++i) co_await f.peer.answer(co_await f.peer.receive());
        },
        [&]() -> awaitable<void> { co_await f.execute("cont"); },
        [&]() -> awaitable<void> { co_await f.client->execute("getfd", {}, ends[1], for_ever); },
        [&]() -> awaitable<void> { co_await f.execute("stop"); });
    char byte = 0;
    CHECK(::read(ends[0], &byte, 1) == 1);
    CHECK(::write(ends[1], "y", 1) == 1);  // it is still ours
    ::close(ends[0]), ::close(ends[1]);
    CHECK_THROWS_AS(f.client->execute("getfd", {}, -1, for_ever), std::system_error);
}

TEST_CASE("a refused command") {
    Fixture f;
    f.handshake();
    f.run(
        [&]() -> awaitable<void> {
            const auto id = (co_await f.peer.receive()).at("id").to_number<int>();
            co_await f.peer.send(
                R"({"error": {"class": "DeviceNotFound", "desc": "none"}, "id": )" +
                std::to_string(id) + "}\n");
        },
        [&]() -> awaitable<void> {
            bool refused = false;
            try {
                co_await f.execute("device_del");
            } catch (const CommandError& e) {
                refused = true;
                CHECK(e.command == "device_del");
                CHECK(e.error_class == "DeviceNotFound");
                CHECK(e.desc == "none");
                CHECK(e.what() == std::string("device_del: none"));
            }
            CHECK(refused);
        });
}

TEST_CASE("a refused handshake") {
    Fixture f;
    f.run(
        [&]() -> awaitable<void> {
            co_await f.peer.send(greeting);
            co_await f.peer.receive();
            co_await f.peer.send(R"({"error": {"class": "GenericError", "desc": "no"}, "id": 0})"
                                 "\n");
        },
        [&]() -> awaitable<void> {
            std::string desc;
            try {
                co_await f.client->handshake(for_ever);
            } catch (const CommandError& e) {
                desc = e.what();
            }
            CHECK(desc == "qmp_capabilities: no");
            const auto error = co_await error_of(f.execute("stop"));
            CHECK(error == Errc::handshake_refused);
        });
    CHECK(f.client->closed());
}

TEST_CASE("a command before the handshake") {
    Fixture f;
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(f.execute("stop"));
        CHECK(error == Errc::not_ready);
    });
}

TEST_CASE("a handshake that timed out can be repeated") {
    const auto dialect = GENERATE(Dialect::qmp, Dialect::guest_agent);
    Fixture f(dialect);
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(f.client->handshake(at_once));
        CHECK(error == Errc::timed_out);
    });
    f.run(
        [&]() -> awaitable<void> {
            if (dialect == Dialect::qmp) co_return co_await f.peer.negotiate();
            co_await f.peer.receive();
            const auto id = (co_await f.peer.receive()).at("id").to_number<std::uint64_t>();
            co_await f.peer.send("\xff{\"return\": " + std::to_string(id) + "}\n");
        },
        [&] { return f.client->handshake(for_ever); });
}

TEST_CASE("several commands at once, answered in reverse") {
    Fixture f;
    f.handshake();
    std::vector<std::string> order;
    const auto call = [&](std::string name) {
        return [&f, &order, name]() -> awaitable<void> {
            const auto value = co_await f.execute(name);
            CHECK(value == name.c_str());
            order.push_back(name);
        };
    };
    f.run(
        [&]() -> awaitable<void> {
            std::vector<json::object> commands;
            for (int i = 0; i < 3; ++i) commands.push_back(co_await f.peer.receive());
            for (auto it = commands.rbegin(); it != commands.rend(); ++it)
                co_await f.peer.answer(*it,
                                       "\"" + std::string(it->at("execute").as_string()) + "\"");
        },
        call("a"), call("b"), call("c"));
    CHECK(order == std::vector<std::string>{"c", "b", "a"});
}

TEST_CASE("the late answer to a call that timed out is swallowed") {
    Fixture f;
    f.handshake();
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(f.execute("slow", at_once));
        CHECK(error == Errc::timed_out);
    });
    f.run(
        [&]() -> awaitable<void> {
            const auto slow = co_await f.peer.receive();
            const auto quick = co_await f.peer.receive();
            co_await f.peer.answer(slow, "\"late\"");
            co_await f.peer.answer(quick, "\"in time\"");
        },
        [&]() -> awaitable<void> {
            const auto value = co_await f.execute("quick");
            CHECK(value == "in time");
        });
}

TEST_CASE("a cancelled call is no timeout, and its answer is swallowed") {
    Fixture f;
    f.handshake();
    asio::cancellation_signal cancel;
    std::exception_ptr outcome;
    bool ended = false;
    asio::co_spawn(
        f.context, f.execute("a"),
        asio::bind_cancellation_slot(cancel.slot(), [&](std::exception_ptr e, json::value) {
            outcome = e;
            ended = true;
        }));
    f.run([&]() -> awaitable<void> {
        const auto command = co_await f.peer.receive();
        cancel.emit(asio::cancellation_type::terminal);
        co_await f.peer.answer(command);
    });
    while (!ended && f.context.run_one()) {
    }
    REQUIRE(outcome);
    boost::system::error_code error;
    try {
        std::rethrow_exception(outcome);
    } catch (const boost::system::system_error& e) {
        error = e.code();
    }
    CHECK(error == asio::error::operation_aborted);
    f.run([&]() -> awaitable<void> { co_await f.peer.answer(co_await f.peer.receive(), "2"); },
          [&]() -> awaitable<void> {
              const auto value = co_await f.execute("b");
              CHECK(value == 2);
          });
}

TEST_CASE("a cancelled wait for an event ends") {
    Fixture f;
    f.handshake();
    asio::cancellation_signal cancel;
    std::exception_ptr outcome;
    bool ended = false;
    asio::co_spawn(f.context, any_event(*f.client),
                   asio::bind_cancellation_slot(cancel.slot(), [&](std::exception_ptr e, bool) {
                       outcome = e;
                       ended = true;
                   }));
    f.context.restart();
    f.context.poll();
    REQUIRE_FALSE(ended);
    cancel.emit(asio::cancellation_type::terminal);
    while (!ended && f.context.run_one()) {
    }
    CHECK_THROWS_AS(std::rethrow_exception(outcome), boost::system::system_error);
}

TEST_CASE("the end of input fails every call and ends the events") {
    Fixture f;
    f.handshake();
    std::vector<std::error_code> errors;
    const auto call = [&]() -> awaitable<void> {
        errors.push_back(co_await error_of(f.execute("x")));
    };
    std::vector<std::string> names;
    f.run(
        call, call, call,
        [&]() -> awaitable<void> {
            for (int i = 0; i < 3; ++i) co_await f.peer.receive();
            co_await f.peer.send("{\"event\": \"A\"}\n{\"event\": \"B\"}\n{\"event\": \"cut");
            f.peer.socket.close();
        },
        [&]() -> awaitable<void> {
            while (const auto event = co_await f.client->next_event()) names.push_back(event->name);
        });
    CHECK(errors == std::vector<std::error_code>(3, Errc::disconnected));
    CHECK(names == std::vector<std::string>{"A", "B"});
    CHECK(f.client->closed());
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(f.execute("x"));
        CHECK(error == Errc::disconnected);
        const auto end = co_await f.client->next_event();
        CHECK_FALSE(end);
    });
}

TEST_CASE("events are kept until they are asked for, beyond the end") {
    Fixture f;
    f.handshake();
    f.run([&]() -> awaitable<void> {
        asio::write(f.peer.socket, asio::buffer("{\"event\": \"A\"}\n", 15));
        f.peer.socket.close();
        const auto error = co_await error_of(f.execute("x"));
        CHECK(error == Errc::disconnected);
        const auto event = co_await f.client->next_event();
        REQUIRE(event);
        CHECK(event->name == "A");
        const auto end = co_await f.client->next_event();
        CHECK_FALSE(end);
    });
}

TEST_CASE("a peer that no longer listens, but stays, fails calls") {
    Fixture f;
    f.handshake();
    f.peer.socket.shutdown(asio::socket_base::shutdown_receive);
    f.run([&]() -> awaitable<void> {
        // Without the loop, so that the failed sending is noticed before the event is read.
        asio::write(f.peer.socket, asio::buffer("{\"event\": \"A\"}\n", 15));
        const auto error = co_await error_of(f.execute("x"));
        CHECK(error == Errc::disconnected);
        const auto event = co_await f.client->next_event();
        REQUIRE(event);
        CHECK(event->name == "A");
        const auto end = co_await f.client->next_event();
        CHECK_FALSE(end);
    });
}

TEST_CASE("malformed input says what was wrong") {
    Fixture f;
    f.handshake();
    f.run([&]() -> awaitable<void> { co_await f.peer.send("{]\n"); },
          [&]() -> awaitable<void> {
              const auto error = co_await error_of(f.execute("x"));
              CHECK(error == Errc::bad_json);
          });
    CHECK(f.client->closed());
}

TEST_CASE("more than the socket holds goes through both ways") {
    Fixture f;
    f.handshake();
    const std::string big(5'000'000, 'x');
    f.run(
        [&]() -> awaitable<void> {
            const auto command = co_await f.peer.receive();
            CHECK(command.at("arguments").at("text") == big.c_str());
            co_await f.peer.answer(command, "\"" + big + "\"");
            co_await f.peer.answer(co_await f.peer.receive());
        },
        [&]() -> awaitable<void> {
            json::object arguments({{"text", big}});
            const auto value = co_await f.client->execute("echo", arguments, for_ever);
            CHECK(value == big.c_str());
        },
        [&]() -> awaitable<void> { co_await f.execute("meanwhile"); });
}

TEST_CASE("a guest agent, with a terminal's noise before it") {
    Fixture f(Dialect::guest_agent);
    f.run(
        [&]() -> awaitable<void> {
            co_await f.peer.send("login: {\"return\": \xff\xff\n[");
            const auto sync = co_await f.peer.receive();
            CHECK(sync.at("execute") == "guest-sync-delimited");
            const auto id = sync.at("arguments").at("id").to_number<std::uint64_t>();
            co_await f.peer.send("\xff{\"return\": " + std::to_string(id) + "}\n");
            co_await f.peer.send("noise\n");
            co_await f.peer.answer(co_await f.peer.receive(), "7");
        },
        [&]() -> awaitable<void> {
            co_await f.client->handshake(for_ever);
            const auto value = co_await f.execute("guest-get-time");
            CHECK(value == 7);
        });
}

TEST_CASE("a guest agent that does not answer is nudged, and QEMU is not") {
    const auto dialect = GENERATE(Dialect::guest_agent, Dialect::qmp);
    Fixture f(dialect);
    char byte = 0;
    bool nudged = false;
    f.run(
        [&]() -> awaitable<void> {
            if (dialect == Dialect::qmp) {
                co_await f.peer.negotiate();
            } else {
                const auto sync = co_await f.peer.receive();
                const auto id = sync.at("arguments").at("id").to_number<std::uint64_t>();
                co_await f.peer.send("\xff{\"return\": " + std::to_string(id) + "}\n");
            }
            const auto request = co_await f.peer.receive();
            const auto read = [&]() -> awaitable<void> {
                co_await f.peer.socket.async_read_some(asio::buffer(&byte, 1), use_awaitable);
                nudged = true;
            };
            asio::steady_timer late{f.context, 1s};
            co_await (read() || late.async_wait(use_awaitable));
            co_await f.peer.answer(request, "7");
        },
        [&]() -> awaitable<void> {
            co_await f.client->handshake(for_ever);
            const auto value = co_await f.execute("guest-get-time");
            CHECK(value == 7);
        });
    CHECK(nudged == (dialect == Dialect::guest_agent));
    CHECK(byte == (nudged ? '\n' : 0));
}

TEST_CASE("what waits ends when the client is closed or destroyed") {
    const bool destroy = GENERATE(false, true);
    Fixture f;
    f.handshake();
    int ended = 0;
    std::error_code error;
    bool event = true;
    asio::co_spawn(f.context, error_of(f.execute("x")), [&](std::exception_ptr, std::error_code e) {
        error = e;
        ++ended;
    });
    asio::co_spawn(f.context, any_event(*f.client), [&](std::exception_ptr, bool e) {
        event = e;
        ++ended;
    });
    f.run([&]() -> awaitable<void> {
        co_await f.peer.receive();
        if (destroy)
            f.client.reset();
        else
            f.client->close();
        char byte;
        boost::system::error_code ec;
        co_await f.peer.socket.async_read_some(asio::buffer(&byte, 1),
                                               asio::redirect_error(use_awaitable, ec));
        CHECK(ec == asio::error::eof);
    });
    f.context.run();
    CHECK(ended == 2);
    CHECK(error == Errc::closed);
    CHECK_FALSE(event);
}

TEST_CASE("calls that are given up end, and the client goes on") {
    Fixture f;
    f.handshake();
    std::error_code error;
    asio::co_spawn(f.context, error_of(f.execute("x")),
                   [&](std::exception_ptr, std::error_code e) { error = e; });
    f.run([&]() -> awaitable<void> {
        co_await f.peer.receive();
        f.client->give_up();
        co_await asio::post(co_await asio::this_coro::executor, use_awaitable);
    });
    CHECK(error == Errc::timed_out);
    CHECK_FALSE(f.client->closed());
}

TEST_CASE("a coroutine that starts after its client is gone") {
    Fixture f;
    f.handshake();
    auto call = f.execute(std::string("a name that is too long to live in the string itself"));
    auto event = f.client->next_event();
    f.client.reset();
    f.run([&]() -> awaitable<void> {
        const auto error = co_await error_of(std::move(call));
        CHECK(error == Errc::closed);
        const auto end = co_await std::move(event);
        CHECK_FALSE(end);
    });
}

TEST_CASE("the loop may end first, with everything suspended") {
    auto f = std::make_unique<Fixture>();
    const bool ready = GENERATE(false, true);
    if (ready) f->handshake();
    asio::co_spawn(f->context, f->client->handshake(for_ever), asio::detached);
    asio::co_spawn(f->context, f->client->next_event(), asio::detached);
    if (ready) asio::co_spawn(f->context, f->execute("x"), asio::detached);
    f->context.restart();
    f->context.poll();
    f.reset();
}

TEST_CASE("a client that never ran closes its descriptor") {
    int fds[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    {
        asio::io_context context;
        Client client(context.get_executor(), fds[0]);
    }
    char byte;
    CHECK(::read(fds[1], &byte, 1) == 0);
    ::close(fds[1]);
}

TEST_CASE("a descriptor that is none") {
    asio::io_context context;
    CHECK_THROWS_AS(Client(context.get_executor(), -1), std::system_error);
}

TEST_CASE("any length of timeout is taken") {
    Fixture f;
    f.handshake();
    f.run([&]() -> awaitable<void> { co_await f.peer.answer(co_await f.peer.receive(), "1"); },
          [&]() -> awaitable<void> {
              const auto value = co_await f.execute("x", std::chrono::milliseconds::max());
              CHECK(value == 1);
              const auto error = co_await error_of(f.execute("x", -1ms));
              CHECK(error == Errc::timed_out);
          });
}
