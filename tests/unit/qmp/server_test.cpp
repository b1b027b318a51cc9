#include "qmp/server.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "qmp/client.h"
#include "qmp/server_protocol.h"

using namespace qvm::qmp;
using namespace std::chrono_literals;
namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using asio::use_awaitable;
using boost::system::error_code;

// No co_await inside Catch2's macros: they name the expression twice, and GCC 12 runs it twice.

namespace {

// For what must not happen in time, and for what must happen at all.
constexpr auto a_moment = 50ms;
constexpr auto for_ever = 60s;

const std::string negotiation = "{\"execute\":\"qmp_capabilities\"}\n";
const std::string done = "{\"return\":{}}\n";
const Event event{"X", {{"text", std::string(200, 'x')}}};
constexpr std::size_t big = 256 << 10;  // more than a socket holds

using Unix = asio::local::stream_protocol;

// A client that says what the test has it say.
struct Peer {
    Unix::socket socket;
    std::string input;

    // The next line with its newline; what is left, perhaps nothing, when the server closes.
    awaitable<std::string> receive() {
        error_code ec;
        auto size = co_await asio::async_read_until(socket, asio::dynamic_buffer(input), '\n',
                                                    asio::redirect_error(use_awaitable, ec));
        if (ec) size = input.size();
        auto line = input.substr(0, size);
        input.erase(0, size);
        co_return line;
    }

    awaitable<std::string> receive_all() {
        std::string all;
        for (;;) {
            const auto line = co_await receive();
            all += line;
            if (!line.ends_with('\n')) co_return all;
        }
    }

    // False when the server has gone.
    awaitable<bool> send(std::string text) {
        error_code ec;
        co_await asio::async_write(socket, asio::buffer(text),
                                   asio::redirect_error(use_awaitable, ec));
        co_return !ec;
    }

    awaitable<void> negotiate() {
        co_await receive();
        co_await send(negotiation);
        const auto answer = co_await receive();
        CHECK(answer == done);
    }
};

struct Fixture {
    asio::io_context context;
    Unix::endpoint endpoint;
    std::unique_ptr<Server> server;
    std::size_t handled = 0;
    std::size_t waiting = 0;  // handlers of "wait" under way

    Fixture() {
        server = std::make_unique<Server>(
            context.get_executor(), listener(), Greeting{7, 2, 22, "", {"oob"}},
            [this](Request request) { return handle(std::move(request)); });
    }

    // An abstract address of the kernel's choice.
    int listener() {
        const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const sa_family_t family = AF_UNIX;
        REQUIRE(::bind(fd, reinterpret_cast<const sockaddr*>(&family), sizeof family) == 0);
        socklen_t size = sizeof(sockaddr_un);
        REQUIRE(::getsockname(fd, endpoint.data(), &size) == 0);
        endpoint.resize(size);
        REQUIRE(::listen(fd, SOMAXCONN) == 0);
        return fd;
    }

    awaitable<json::value> handle(Request request) {
        ++handled;
        if (request.command == "echo") co_return request.arguments;
        if (request.command == "big") co_return json::string(big, 'x');
        if (request.command == "refuse") throw CommandError("refuse", "DeviceNotFound", "none");
        if (request.command == "throw") throw std::runtime_error("it broke");
        if (request.command == "die") server.reset();
        if (request.command == "slow") co_await sleep(5ms);
        if (request.command == "wait") co_await wait();
        co_return request.command.c_str();
    }

    awaitable<void> sleep(std::chrono::milliseconds time) {
        asio::steady_timer timer(context, time);
        co_await timer.async_wait(use_awaitable);
    }

    awaitable<void> wait() {
        const std::shared_ptr<void> guard(nullptr, [this](void*) { --waiting; });
        ++waiting;
        co_await sleep(for_ever);
    }

    Peer connect() {
        Peer peer{Unix::socket(context), {}};
        peer.socket.connect(endpoint);
        return peer;
    }

    Peer negotiated() {
        auto peer = connect();
        run([&] { return peer.negotiate(); });
        return peer;
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
        run_until([&] { return ended == sizeof...(scripts); });
    }

    template <typename Condition>
    void run_until(Condition condition) {
        context.restart();
        while (!condition() && context.run_one_for(for_ever)) {
        }
        REQUIRE(condition());
    }

    // Until nothing more happens by itself.
    void settle() {
        context.restart();
        context.run_for(a_moment);
    }

    void send(Peer& peer, const std::string& text) {
        run([&]() -> awaitable<void> { co_await peer.send(text); });
    }

    std::string receive_all(Peer& peer) {
        std::string all;
        run([&]() -> awaitable<void> { all = co_await peer.receive_all(); });
        return all;
    }

    // What is answered to as many lines.
    std::string talk(Peer& peer, const std::string& text, int lines = 1) {
        std::string answers;
        run([&]() -> awaitable<void> {
            co_await peer.send(text);
            for (int i = 0; i < lines; ++i) answers += co_await peer.receive();
        });
        return answers;
    }
};

std::string execute(const std::string& command) {
    return "{\"execute\":\"" + command + "\"}\n";
}

std::string returned(const std::string& text) {
    return "{\"return\":\"" + text + "\"}\n";
}

std::string error(const std::string& error_class, const std::string& desc) {
    return R"({"error":{"class":")" + error_class + R"(","desc":")" + desc + "\"}}\n";
}

std::size_t count_lines(const std::string& text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("server: our own client") {
    Fixture f;
    Client client(f.context.get_executor(), f.connect().socket.release());
    const json::object arguments({{"a", 1}});
    const Event stop{"STOP", {}, 1, 2};
    f.run([&]() -> awaitable<void> {
        co_await client.handshake(for_ever);
        CHECK(client.greeting()->micro == 22);
        CHECK(client.greeting()->capabilities.empty());
        const auto value = co_await client.execute("echo", arguments, for_ever);
        CHECK(value == arguments);
        std::string refusal;
        try {
            co_await client.execute("refuse", {}, for_ever);
        } catch (const CommandError& e) {
            refusal = e.error_class + ": " + e.desc;
        }
        CHECK(refusal == "DeviceNotFound: none");
        f.server->broadcast(stop);
        const auto got = co_await client.next_event();
        CHECK(got->name == "STOP");
        CHECK(got->microseconds == 2);
    });
}

TEST_CASE("server: to the letter") {
    Fixture f;
    auto peer = f.connect();
    CHECK(
        f.talk(peer, execute("echo"), 2) ==
        R"({"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},)"
        R"("capabilities":[]}})"
        "\n" +
            error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"));
    CHECK(f.talk(peer, negotiation) == done);
    CHECK(f.talk(peer, R"({"execute":"echo","arguments":{"a":[1]},"id":{"b":null}})"
                       "\r\n") == "{\"return\":{\"a\":[1]},\"id\":{\"b\":null}}\n");
    CHECK(f.talk(peer, execute("refuse")) == error("DeviceNotFound", "none"));
    CHECK(f.talk(peer, execute("throw")) == error("GenericError", "it broke"));
    CHECK(f.talk(peer, "x\n\xff\n" + execute("echo"), 3) ==
          error("GenericError", "JSON parse error, syntax error") +
              error("GenericError", "JSON parse error, syntax error") + done);
}

TEST_CASE("server: commands in one breath are carried out in order") {
    Fixture f;
    auto peer = f.negotiated();
    CHECK(f.talk(peer, execute("slow") + execute("a") + "x\n" + execute("b"), 4) ==
          returned("slow") + returned("a") +
              error("GenericError", "JSON parse error, syntax error") + returned("b"));
}

TEST_CASE("server: clients do not wait for each other") {
    Fixture f;
    auto one = f.negotiated();
    auto other = f.negotiated();
    f.send(one, execute("wait"));
    f.run_until([&] { return f.waiting == 1; });
    CHECK(f.talk(other, execute("a")) == returned("a"));
    CHECK(f.waiting == 1);
}

TEST_CASE("server: an event is for those who have negotiated") {
    Fixture f;
    auto negotiated = f.negotiated();
    auto waiting = f.negotiated();
    auto greeted = f.connect();
    f.send(waiting, execute("wait"));
    f.run_until([&] { return f.waiting == 1; });
    f.run([&]() -> awaitable<void> { co_await greeted.receive(); });
    f.server->broadcast({"STOP", {}, 1, 2});
    const auto line = R"({"timestamp":{"seconds":1,"microseconds":2},"event":"STOP"})"
                      "\n";
    CHECK(f.talk(negotiated, "") == line);
    CHECK(f.talk(waiting, "") == line);
    CHECK(f.talk(greeted, negotiation) == done);
}

TEST_CASE("server: who goes has his command cancelled") {
    Fixture f;
    auto peer = f.negotiated();
    f.send(peer, execute("wait") + execute("never"));
    f.run_until([&] { return f.waiting == 1; });

    SECTION("by closing") {
        peer.socket.close();
    }
    SECTION("by shutting down both directions") {
        peer.socket.shutdown(asio::socket_base::shutdown_both);
    }
    SECTION("by closing after a half-close") {
        peer.socket.shutdown(asio::socket_base::shutdown_send);
        f.settle();
        REQUIRE(f.waiting == 1);
        peer.socket.close();
    }
    SECTION("by closing with answers unread") {
        f.server->broadcast(event);
        f.settle();
        REQUIRE(f.waiting == 1);
        peer.socket.close();
    }
    f.run_until([&] { return f.waiting == 0; });
    f.settle();
    CHECK(f.handled == 1);
    auto next = f.negotiated();
    CHECK(f.talk(next, execute("a")) == returned("a"));
}

TEST_CASE("server: a half-closed client is answered, and then let go") {
    Fixture f;
    auto peer = f.connect();
    // The last line lacks its newline.
    f.send(peer, negotiation + execute("slow") + execute("big") + "{\"execute\":\"a\"}");
    peer.socket.shutdown(asio::socket_base::shutdown_send);
    f.settle();
    const auto answers = f.receive_all(peer);
    CHECK(answers.substr(answers.find('\n') + 1) ==
          done + returned("slow") + returned(std::string(big, 'x')) + returned("a"));
}

TEST_CASE("server: a half-close with nothing to be done") {
    Fixture f;
    auto peer = f.negotiated();
    peer.socket.shutdown(asio::socket_base::shutdown_send);
    CHECK(f.receive_all(peer).empty());
}

TEST_CASE("server: megabytes without a newline") {
    Fixture f;
    auto peer = f.negotiated();
    auto other = f.negotiated();
    std::string answers;
    bool sent = true;
    f.run([&]() -> awaitable<void> { sent = co_await peer.send(std::string(8 << 20, 'x')); },
          [&]() -> awaitable<void> { answers = co_await peer.receive_all(); });
    CHECK_FALSE(sent);
    CHECK(answers == error("GenericError", "QMP input line is too long"));
    CHECK(f.talk(other, execute("a")) == returned("a"));
}

TEST_CASE("server: one client that never reads its events") {
    constexpr std::size_t events = 20000;
    Fixture f;
    auto deaf = f.negotiated();
    auto raw = f.negotiated();
    Client client(f.context.get_executor(), f.connect().socket.release());
    f.run([&] { return client.handshake(for_ever); });

    std::size_t by_raw = 0;
    std::size_t by_client = 0;
    f.run(
        [&]() -> awaitable<void> {
            for (std::size_t i = 0; i < events; ++i) {
                f.server->broadcast(event);
                while (i - std::min({i, by_raw, by_client}) > 100)
                    co_await asio::post(use_awaitable);
            }
        },
        [&]() -> awaitable<void> {
            for (; by_raw < events; ++by_raw) {
                const auto line = co_await raw.receive();
                CHECK(line == encode_event(event));
            }
        },
        [&]() -> awaitable<void> {
            for (; by_client < events; ++by_client) {
                const auto got = co_await client.next_event();
                CHECK(got);
            }
        });
    CHECK(client.dropped_events() == 0);
    // What it was sent is in its socket still, and then the end.
    const auto received = f.receive_all(deaf);
    CHECK_FALSE(received.empty());
    CHECK(received.size() < events * encode_event(event).size() / 2);
}

TEST_CASE("server: who does not read his answers is not heard") {
    constexpr int commands = 64;
    Fixture f;
    auto peer = f.negotiated();
    std::string text;
    for (int i = 0; i < commands; ++i) text += execute("big");
    f.send(peer, text);
    f.settle();
    CHECK(f.handled < 5);
    CHECK(f.talk(peer, "", commands).size() == commands * returned(std::string(big, 'x')).size());
}

TEST_CASE("server: input is held back while a command is under way") {
    Fixture f;
    auto peer = f.negotiated();
    std::string text = execute("wait");
    while (text.size() < 8 * default_max_request) text += execute("never");
    bool over = false;
    bool sent = true;
    asio::co_spawn(f.context, peer.send(std::move(text)), [&](std::exception_ptr, bool ok) {
        over = true;
        sent = ok;
    });
    f.settle();
    CHECK(f.waiting == 1);
    CHECK_FALSE(over);

    // That it goes is noticed all the same.
    peer.socket.close();
    f.run_until([&] { return over && f.waiting == 0; });
    CHECK_FALSE(sent);
    CHECK(f.handled == 1);
}

TEST_CASE("server: one client too many takes the place of the one that was idle longest") {
    Fixture f;
    std::vector<Peer> peers;
    for (std::size_t i = 0; i < Server::max_clients; ++i) peers.push_back(f.negotiated());
    f.send(peers.front(), execute("wait"));
    f.run_until([&] { return f.waiting == 1; });
    auto last = f.connect();
    f.run([&] { return last.negotiate(); });
    CHECK(f.receive_all(peers.at(1)).empty());
    CHECK(f.talk(peers.at(2), execute("echo")) == done);
    CHECK(f.waiting == 1);
}

TEST_CASE("server: one client too many waits while all others are served") {
    Fixture f;
    std::vector<Peer> peers;
    for (std::size_t i = 0; i < Server::max_clients; ++i) {
        peers.push_back(f.negotiated());
        f.send(peers.back(), execute("wait"));
    }
    f.run_until([&] { return f.waiting == Server::max_clients; });
    auto last = f.connect();
    f.settle();
    CHECK(last.socket.available() == 0);
    peers.pop_back();
    f.run([&] { return last.negotiate(); });
}

TEST_CASE("server: a want of descriptors is waited out") {
    Fixture f;
    f.settle();
    auto peer = f.connect();
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit none{0, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
    f.context.restart();
    const auto steps = f.context.run_for(300ms);
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK(steps > 1);
    CHECK(steps < 20);
    f.run([&] { return peer.negotiate(); });
}

TEST_CASE("server: finish() answers what is under way and begins nothing") {
    Fixture f;
    auto idle = f.negotiated();
    auto reader = f.negotiated();
    auto slow = f.negotiated();
    f.send(reader, execute("big"));
    f.send(slow, execute("slow") + execute("never"));
    f.run_until([&] { return f.handled == 2; });
    f.server->broadcast({"SHUTDOWN", {}});
    const auto shutdown = encode_event({"SHUTDOWN", {}});

    std::string idle_got, reader_got, slow_got;
    f.run([&] { return f.server->finish(for_ever); },
          [&]() -> awaitable<void> { idle_got = co_await idle.receive_all(); },
          [&]() -> awaitable<void> { reader_got = co_await reader.receive_all(); },
          [&]() -> awaitable<void> { slow_got = co_await slow.receive_all(); });
    CHECK(idle_got == shutdown);
    CHECK(reader_got.size() == returned(std::string(big, 'x')).size() + shutdown.size());
    CHECK(slow_got == shutdown + returned("slow"));
    CHECK(f.handled == 2);
    CHECK_THROWS_AS(f.connect(), boost::system::system_error);
}

TEST_CASE("server: finish() without clients") {
    Fixture f;
    f.run([&] { return f.server->finish(for_ever); });
    f.server->broadcast(event);
}

TEST_CASE("server: finish() has an end") {
    Fixture f;
    auto waiting = f.negotiated();
    auto deaf = f.negotiated();
    f.send(waiting, execute("wait"));
    f.send(deaf, execute("big"));
    f.run_until([&] { return f.handled == 2; });
    f.run([&] { return f.server->finish(a_moment); });
    f.run_until([&] { return f.waiting == 0; });
    CHECK(f.receive_all(waiting).empty());
    const auto part = f.receive_all(deaf);
    CHECK(part.size() < big);
    CHECK(count_lines(part) == 0);
}

TEST_CASE("server: destroyed with all kinds of things under way") {
    Fixture f;
    auto waiting = f.negotiated();
    auto deaf = f.negotiated();
    auto unborn = f.negotiated();
    f.send(waiting, execute("wait"));
    f.send(deaf, execute("big"));
    f.run_until([&] { return f.handled == 2; });

    SECTION("then run on") {
        bool finished = false;
        asio::co_spawn(f.context, f.server->finish(for_ever),
                       [&](std::exception_ptr) { finished = true; });
        f.settle();
        CHECK_FALSE(finished);
        f.server.reset();
        f.run_until([&] { return f.waiting == 0 && finished; });
        CHECK(f.receive_all(waiting).empty());
        CHECK(f.receive_all(unborn).empty());
    }
    SECTION("at each step from a command's arrival to its beginning") {
        const int steps = GENERATE(1, 2, 3);
        const auto text = execute("never");
        REQUIRE(::send(unborn.socket.native_handle(), text.data(), text.size(), 0) > 0);
        f.context.restart();
        for (int i = 0; i < steps && f.handled == 2; ++i) f.context.run_one();
        const auto begun = f.handled;
        f.server.reset();
        f.run_until([&] { return f.waiting == 0; });
        f.settle();
        CHECK(f.handled == begun);
    }
    SECTION("by a handler") {
        f.send(unborn, execute("die"));
        CHECK(f.receive_all(unborn).empty());
        CHECK_FALSE(f.server);
    }
    SECTION("and not run again") {}
}

TEST_CASE("server: a descriptor that cannot be used") {
    asio::io_context context;
    CHECK_THROWS_AS(Server(context.get_executor(), -1, {}, {}), std::system_error);
}
