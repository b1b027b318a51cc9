#include "netns/splice.h"

#include <sys/socket.h>

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <string>

#include "netns/port_forward.h"
#include "netns/spare_sockets.h"

using namespace qvm;
using namespace qvm::netns;
using namespace std::chrono_literals;

namespace {

struct Pair {
    Pair() {
        std::array<int, 2> ends;
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) ==
                0);
        ours.reset(ends[0]);
        theirs.reset(ends[1]);
    }

    UniqueFd ours, theirs;
};

/// writer -> from.ours, to.ours -> reader
struct Line {
    Splice::Next advance() { return splice.advance(from.ours.get(), to.ours.get(), pipes); }
    ssize_t write(const std::string& text) {
        return ::send(from.theirs.get(), text.data(), text.size(), MSG_NOSIGNAL);
    }
    std::string read() {
        std::string text(1 << 20, '\0');
        const auto size = ::recv(to.theirs.get(), text.data(), text.size(), 0);
        text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
        return text;
    }

    Pair from, to;
    PipePool pipes;
    Splice splice;
};

}  // namespace

TEST_CASE("bytes go from one socket to the other, and an idle line holds no pipe") {
    Line line;
    const auto pipes = line.pipes.size();
    CHECK(line.advance() == Splice::Next::readable);
    line.write("hello");
    CHECK(line.advance() == Splice::Next::readable);
    CHECK(line.read() == "hello");
    CHECK(line.pipes.size() == pipes);
}

TEST_CASE("the writer's end comes after its last byte") {
    Line line;
    line.write("hello");
    line.from.theirs.reset();
    CHECK(line.advance() == Splice::Next::readable);
    CHECK(line.advance() == Splice::Next::end);
    CHECK(line.read() == "hello");
}

TEST_CASE("a reader that stops is waited for, with one pipe's bytes") {
    Line line;
    const std::string text(1 << 16, 'x');
    std::size_t written = 0, read = 0;
    for (int i = 0; i < 1000; ++i) {
        if (const auto size = line.write(text); size > 0) written += static_cast<std::size_t>(size);
        if (line.advance() == Splice::Next::writable) break;
    }
    CHECK(line.advance() == Splice::Next::writable);
    CHECK(written < (8u << 20));
    for (std::string got; !(got = line.read()).empty(); line.advance()) read += got.size();
    CHECK(read == written);
}

TEST_CASE("a reader that is gone breaks the line") {
    ::signal(SIGPIPE, SIG_IGN);  // as main() has it
    Line line;
    line.to.theirs.reset();
    line.write("hello");
    CHECK(line.advance() == Splice::Next::failed);
}

TEST_CASE("no more pipes are kept than a few") {
    PipePool pool;
    std::vector<Pipe> pipes;
    for (int i = 0; i < 50; ++i) pipes.push_back(pool.take().value());
    CHECK(pool.size() == 0);
    for (auto& pipe : pipes) pool.give_back(std::move(pipe));
    CHECK(pool.size() == PipePool::most);
}

TEST_CASE("sockets are opened a few at a time, and more when they go fast") {
    CHECK(next_batch(0, 1h) == 16);
    CHECK(next_batch(16, 10ms) == 32);
    CHECK(next_batch(256, 10ms) == 256);
    CHECK(next_batch(256, 2s) == 16);
}

TEST_CASE("a published port's text") {
    namespace ip = boost::asio::ip;
    CHECK(to_text(Protocol::tcp, ip::make_address("127.0.0.1"), 8080) == "127.0.0.1:8080/tcp");
    CHECK(to_text(Protocol::udp, ip::make_address("::1"), 53) == "[::1]:53/udp");
}
