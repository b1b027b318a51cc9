#include "netns/port_forward.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <catch2/catch.hpp>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <future>
#include <optional>
#include <thread>

#include "netns/error.h"
#include "netns/udp_forward.h"
#include "oracle.h"

using namespace qvm;
using namespace qvm::netns;
using namespace std::chrono_literals;
namespace asio = boost::asio;
namespace ip = boost::asio::ip;
using boost::system::error_code;
using ip::tcp;
using ip::udp;
using Clock = std::chrono::steady_clock;

namespace {

constexpr unsigned short guest_port = 7;
const auto local = ip::address_v4::loopback();

/// A namespace with a "guest" on its lo, and PortForwards on a thread of their own, so that a test
/// may block. What the guest's sockets are is up to the test.
struct Fixture {
    Fixture() {
        ::signal(SIGPIPE, SIG_IGN);  // as main() has it
        oracle::sh("ip link set lo up");
        oracle::sh(space, "ip link set lo up");
        space.run([&] {
            guest_tcp.open(tcp::v4());
            guest_udp.open(udp::v4());
        });
        guest_tcp.set_option(tcp::acceptor::reuse_address(true));
        guest_tcp.bind({local, guest_port});
        guest_udp.bind({local, guest_port});
    }
    ~Fixture() { stop(); }

    /// Publishes one port of `address`; what it is in the end.
    unsigned short publish(Protocol protocol, const ip::address& address = local) {
        auto port = bind_port(protocol, address, 0);
        const auto number = port.port;
        std::vector<Publication> publications;
        publications.push_back({std::move(port), local, guest_port});
        forwards.emplace(serving.get_executor(), space, std::move(publications));
        server = std::jthread([this] { serving.run(); });
        return number;
    }
    void listen() { guest_tcp.listen(); }

    /// Ends the PortForwards where they run.
    void stop() {
        if (!server.joinable()) return;
        asio::post(serving, [this] {
            forwards.reset();
            work.reset();
        });
        server.join();
    }

    tcp::socket connect(unsigned short port, const ip::address& address = local) {
        tcp::socket client{context};
        client.connect({address, port});
        return client;
    }

    asio::io_context serving, context;
    asio::executor_work_guard<asio::io_context::executor_type> work{serving.get_executor()};
    Namespace space = Namespace::create();
    tcp::acceptor guest_tcp{context};
    udp::socket guest_udp{context};
    std::optional<PortForwards> forwards;
    std::jthread server;
};

/// A pair of sockets with a published port between them.
struct Connected : Fixture {
    Connected() {
        listen();
        client = connect(publish(Protocol::tcp));
        guest = guest_tcp.accept();
    }

    tcp::socket client{context}, guest{context};
};

std::string pattern(std::size_t size) {
    std::string bytes(size, '\0');
    std::uint32_t state = 1;
    for (auto& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
    return bytes;
}

/// What comes until the end, or until `error` is set.
std::string read_all(tcp::socket& socket, error_code& error) {
    std::string bytes;
    asio::read(socket, asio::dynamic_buffer(bytes), error);
    return bytes;
}

std::string read_all(tcp::socket& socket) {
    error_code error;
    auto bytes = read_all(socket, error);
    CHECK(error == asio::error::eof);
    return bytes;
}

/// The error that the next read meets; waits for it.
error_code read_error(tcp::socket& socket) {
    error_code error;
    std::array<char, 1> byte;
    socket.read_some(asio::buffer(byte), error);
    return error;
}

void reset(tcp::socket& socket) {
    socket.set_option(tcp::socket::linger(true, 0));
    socket.close();
}

/// Writes until nothing more goes in for a while; the bytes.
std::size_t fill(tcp::socket& socket) {
    const std::string bytes(1 << 16, 'x');
    socket.non_blocking(true);
    std::size_t written = 0;
    for (int idle = 0; idle < 20;) {
        error_code error;
        const auto size = socket.write_some(asio::buffer(bytes), error);
        written += size;
        if (size > 0) {
            idle = 0;
            continue;
        }
        std::this_thread::sleep_for(10ms);
        ++idle;
    }
    socket.non_blocking(false);
    return written;
}

std::size_t open_descriptors() {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator{"/proc/self/fd"}, {}));
}

/// CPU time of a thread.
std::chrono::nanoseconds cpu_time(std::jthread& thread) {
    clockid_t clock{};
    timespec time{};
    REQUIRE(::pthread_getcpuclockid(thread.native_handle(), &clock) == 0);
    REQUIRE(::clock_gettime(clock, &time) == 0);
    return std::chrono::seconds{time.tv_sec} + std::chrono::nanoseconds{time.tv_nsec};
}

template <typename Condition>
bool becomes_true(Condition condition) {
    for (int i = 0; i < 500 && !condition(); ++i) std::this_thread::sleep_for(10ms);
    return condition();
}

/// A process that echoes at the guest's port: what limits us does not limit it.
struct EchoServer {
    explicit EchoServer(const Namespace& space) {
        space.run([&] {
            output = ::popen("echo $$; exec socat TCP-LISTEN:7,bind=127.0.0.1,backlog=64,fork PIPE",
                             "r");
        });
        REQUIRE(output != nullptr);
        REQUIRE(std::fscanf(output, "%d", &pid) == 1);
        CHECK(becomes_true([&] { return !oracle::sh(space, "ss -Hltn sport = :7").empty(); }));
    }
    EchoServer(const EchoServer&) = delete;
    EchoServer& operator=(const EchoServer&) = delete;
    ~EchoServer() {
        ::kill(pid, SIGTERM);
        ::pclose(output);
    }

    FILE* output = nullptr;
    pid_t pid = 0;
};

/// Another limit of open descriptors, for as long as it lives.
struct DescriptorLimit {
    explicit DescriptorLimit(rlim_t soft) {
        ::getrlimit(RLIMIT_NOFILE, &before);
        const rlimit changed{std::min(soft, before.rlim_max), before.rlim_max};
        ::setrlimit(RLIMIT_NOFILE, &changed);
    }
    ~DescriptorLimit() { ::setrlimit(RLIMIT_NOFILE, &before); }

    rlimit before{};
};

}  // namespace

TEST_CASE("a port that is taken is an error that names it") {
    oracle::sh("ip link set lo up");
    for (const auto protocol : {Protocol::tcp, Protocol::udp}) {
        const auto port = bind_port(protocol, local, 0);
        CHECK(port.port != 0);
        try {
            bind_port(protocol, local, port.port);
            FAIL("bound twice");
        } catch (const Error& error) {
            CHECK(error.error() == EADDRINUSE);
            CHECK(error.what() ==
                  "publish " + to_text(protocol, local, port.port) + ": Address already in use");
        }
    }
    CHECK_THROWS_AS(bind_port(Protocol::tcp, ip::make_address("203.0.113.77"), 80), Error);
}

TEST_CASE("an IPv6 address and an IPv4 one share a port, and each can be published") {
    Fixture f;
    if (oracle::sh("ip -6 addr show dev lo").empty()) return;  // a kernel without IPv6
    const auto port = bind_port(Protocol::tcp, ip::address_v4::any(), 0);
    CHECK(bind_port(Protocol::tcp, ip::address_v6::any(), port.port).port == port.port);
    f.listen();
    auto client =
        f.connect(f.publish(Protocol::tcp, ip::address_v6::loopback()), ip::address_v6::loopback());
    auto guest = f.guest_tcp.accept();
    asio::write(client, asio::buffer("hello", 5));
    client.shutdown(tcp::socket::shutdown_send);
    CHECK(read_all(guest) == "hello");
}

TEST_CASE("connections in TIME_WAIT do not keep a port taken") {
    unsigned short port = 0;
    {
        Connected c;
        port = c.client.remote_endpoint().port();
        c.guest.close();
        CHECK(read_error(c.client) == asio::error::eof);
        c.client.close();
        std::this_thread::sleep_for(50ms);
    }
    CHECK(!oracle::sh("ss -Htan state time-wait sport = :" + std::to_string(port)).empty());
    CHECK(bind_port(Protocol::tcp, local, port).port == port);
}

TEST_CASE("megabytes go both ways at once and arrive as they were") {
    Connected c;
    const auto bytes = pattern(8 << 20);
    const auto echo = std::async(std::launch::async, [&] {
        std::array<char, 30000> buffer;
        error_code end;
        while (!end) {
            const auto size = c.guest.read_some(asio::buffer(buffer), end);
            asio::write(c.guest, asio::buffer(buffer, size));
        }
        c.guest.close();
    });
    const auto writer = std::async(std::launch::async, [&] {
        asio::write(c.client, asio::buffer(bytes));
        c.client.shutdown(tcp::socket::shutdown_send);
    });
    CHECK((read_all(c.client) == bytes));
}

TEST_CASE("when the client has said all, the guest can still answer") {
    Connected c;
    asio::write(c.client, asio::buffer("question", 8));
    c.client.shutdown(tcp::socket::shutdown_send);
    CHECK(read_all(c.guest) == "question");
    asio::write(c.guest, asio::buffer("answer", 6));
    c.guest.close();
    CHECK(read_all(c.client) == "answer");
}

TEST_CASE("when the guest has said all, the client can still answer") {
    Connected c;
    asio::write(c.guest, asio::buffer("question", 8));
    c.guest.shutdown(tcp::socket::shutdown_send);
    CHECK(read_all(c.client) == "question");
    asio::write(c.client, asio::buffer("answer", 6));
    c.client.close();
    CHECK(read_all(c.guest) == "answer");
}

TEST_CASE("urgent data stays in its place, and nothing spins") {
    Connected c;
    asio::write(c.client, asio::buffer("before", 6));
    c.client.send(asio::buffer("!", 1), tcp::socket::message_out_of_band);
    const auto cpu = [&] { return cpu_time(c.server); };
    std::this_thread::sleep_for(50ms);
    const auto spent = cpu();
    std::this_thread::sleep_for(300ms);
    CHECK(cpu() - spent < 100ms);
    asio::write(c.client, asio::buffer("after", 5));
    asio::write(c.guest, asio::buffer("answer", 6));
    c.client.shutdown(tcp::socket::shutdown_send);
    CHECK(read_all(c.guest) == "before!after");
    c.guest.close();
    CHECK(read_all(c.client) == "answer");
}

TEST_CASE("a reader that does not read stops the writer, and loses nothing") {
    Connected c;
    const auto written = fill(c.client);
    CHECK(written < (32u << 20));  // four sockets' buffers
    c.client.shutdown(tcp::socket::shutdown_send);
    CHECK(read_all(c.guest).size() == written);
}

TEST_CASE("a reset passes") {
    Connected c;
    SECTION("from the client") {
        reset(c.client);
        CHECK(read_error(c.guest) == asio::error::connection_reset);
    }
    SECTION("from the guest") {
        reset(c.guest);
        CHECK(read_error(c.client) == asio::error::connection_reset);
    }
    SECTION("from a client that nobody reads from") {
        fill(c.client);
        reset(c.client);
        CHECK(becomes_true([&] {
            error_code error;
            c.guest.write_some(asio::buffer("x", 1), error);
            return error == asio::error::connection_reset || error == asio::error::broken_pipe;
        }));
    }
    SECTION("after the client has said all") {
        c.client.shutdown(tcp::socket::shutdown_send);
        CHECK(read_error(c.guest) == asio::error::eof);
        reset(c.client);
        CHECK(becomes_true([&] {
            error_code error;
            c.guest.write_some(asio::buffer("x", 1), error);
            return bool{error};
        }));
    }
}

TEST_CASE("a client of a guest that refuses is reset at once") {
    Fixture f;
    const auto port = f.publish(Protocol::tcp);
    const auto start = Clock::now();
    auto client = f.connect(port);
    CHECK(read_error(client) == asio::error::connection_reset);
    CHECK(Clock::now() - start < 2s);
}

TEST_CASE("thousands of connections work at once and leave nothing") {
    const DescriptorLimit limit{20000};
    rlimit now{};
    ::getrlimit(RLIMIT_NOFILE, &now);
    const auto count = std::min<std::size_t>(2000, (now.rlim_cur - 400) / 4);
    Fixture f;
    f.listen();
    const auto port = f.publish(Protocol::tcp);
    {
        // Opens what stays: spare sockets, pipes.
        auto client = f.connect(port);
        auto guest = f.guest_tcp.accept();
    }
    const auto before = open_descriptors();
    std::vector<tcp::socket> clients, guests;
    for (std::size_t i = 0; i < count; ++i) {
        clients.push_back(f.connect(port));
        guests.push_back(f.guest_tcp.accept());
    }
    // Accepted in the order in which they came.
    std::size_t right = 0;
    for (std::size_t i = 0; i < count; ++i) asio::write(clients[i], asio::buffer(&i, sizeof i));
    for (std::size_t i = 0; i < count; ++i) {
        std::size_t got = 0;
        asio::read(guests[i], asio::buffer(&got, sizeof got));
        asio::write(guests[i], asio::buffer(&got, sizeof got));
    }
    for (std::size_t i = 0; i < count; ++i) {
        std::size_t got = 0;
        asio::read(clients[i], asio::buffer(&got, sizeof got));
        if (got == i) ++right;
    }
    CHECK(right == count);
    // Two for a connection, four for two ends in this process; spare sockets and pipes beside.
    CHECK(open_descriptors() < before + 4 * count + 300);
    clients.clear();
    guests.clear();
    CHECK(becomes_true([&] { return open_descriptors() < before + 300; }));
    f.stop();
    CHECK(open_descriptors() <= before);
}

TEST_CASE("without descriptors clients wait, at no cost, and are served later") {
    Fixture f;
    f.guest_tcp.close();
    const auto port = f.publish(Protocol::tcp);
    const EchoServer echo{f.space};
    std::vector<tcp::socket> clients;
    for (int i = 0; i < 40; ++i) clients.emplace_back(f.context, tcp::v4());
    const auto answered = [&] {
        return std::count_if(clients.begin(), clients.end(),
                             [](auto& client) { return client.available() == 1; });
    };
    decltype(answered()) at_once = 0;
    std::clock_t cpu = 0;
    bool others_get_their_turn = false;
    {
        // Nothing is checked here: UBSan needs descriptors to look at what Catch has.
        const DescriptorLimit limit{open_descriptors() + 30};
        for (auto& client : clients) client.connect({local, port});
        for (auto& client : clients) asio::write(client, asio::buffer("x", 1));
        cpu = std::clock();
        std::this_thread::sleep_for(1s);
        cpu = std::clock() - cpu;
        at_once = answered();
        for (auto& client : clients)
            if (client.available() == 1) client.shutdown(tcp::socket::shutdown_both);
        others_get_their_turn = becomes_true([&] { return answered() > at_once; });
    }
    CHECK(cpu < CLOCKS_PER_SEC / 2);
    CHECK(at_once > 0);
    CHECK(at_once < std::ssize(clients));
    CHECK(others_get_their_turn);
    CHECK(becomes_true([&] { return answered() == std::ssize(clients); }));
}

TEST_CASE("connections under way are reset when the forwarding ends") {
    Connected c;
    asio::write(c.client, asio::buffer("x", 1));
    std::array<char, 1> byte;
    asio::read(c.guest, asio::buffer(byte));
    c.stop();
    CHECK(read_error(c.client) == asio::error::connection_reset);
}

TEST_CASE("the forwarding may end under load, also where its loop runs no more") {
    for (const bool loop_runs : {true, false}) {
        const auto before = open_descriptors();
        {
            Fixture f;
            f.listen();
            const auto port = f.publish(Protocol::tcp);
            std::vector<std::jthread> load;
            for (int i = 0; i < 4; ++i) {
                load.emplace_back([client = std::make_shared<tcp::socket>(f.connect(port))] {
                    const std::string bytes(1 << 16, 'x');
                    error_code error;
                    while (!error) client->write_some(asio::buffer(bytes), error);
                });
                load.emplace_back([guest = std::make_shared<tcp::socket>(f.guest_tcp.accept())] {
                    std::string bytes(1 << 16, 'x');
                    error_code error;
                    while (!error) guest->read_some(asio::buffer(bytes), error);
                });
            }
            std::this_thread::sleep_for(200ms);
            if (loop_runs) {
                f.stop();
            } else {
                f.serving.stop();
                f.server.join();
                f.forwards.reset();
            }
        }
        CHECK(open_descriptors() == before);
    }
}

TEST_CASE("the namespace goes when its owner does, not before and not after") {
    const auto before = oracle::sh("ls /proc/self/fd | wc -l");
    {
        Connected c;
        oracle::sh("ip link add here0 type veth peer name there0 netns /proc/" +
                   std::to_string(::getpid()) + "/fd/" + std::to_string(c.space.fd()));
        c.stop();
    }
    CHECK(oracle::becomes_empty("ip -br link | grep here0"));
    CHECK(oracle::sh("ls /proc/self/fd | wc -l") == before);
}

namespace {

/// A client of a UDP port; a lost datagram would make it wait for ever.
struct UdpClient {
    UdpClient(Fixture& f, unsigned short port, const ip::address& address = local)
        : socket(f.context, udp::v4()) {
        socket.connect({address, port});
    }
    void send(const std::string& text) { socket.send(asio::buffer(text)); }
    std::string receive() {
        std::string text(70000, '\0');
        const timeval patience{5, 0};
        ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        const auto size = ::recv(socket.native_handle(), text.data(), text.size(), 0);
        text.resize(size > 0 ? static_cast<std::size_t>(size) : 0);
        return text;
    }

    udp::socket socket;
};

/// The guest's end: what came, and from where.
std::pair<std::string, udp::endpoint> receive_from(udp::socket& socket) {
    std::string text(70000, '\0');
    udp::endpoint from;
    text.resize(socket.receive_from(asio::buffer(text), from));
    return {text, from};
}

}  // namespace

TEST_CASE("each UDP client gets its own answers") {
    Fixture f;
    const auto port = f.publish(Protocol::udp);
    UdpClient one{f, port}, other{f, port};
    one.send("one");
    const auto from_one = receive_from(f.guest_udp);
    other.send("other");
    const auto from_other = receive_from(f.guest_udp);
    CHECK(from_one.first == "one");
    CHECK(from_other.first == "other");
    CHECK(from_one.second != from_other.second);
    f.guest_udp.send_to(asio::buffer("for the other", 13), from_other.second);
    f.guest_udp.send_to(asio::buffer("for one", 7), from_one.second);
    CHECK(one.receive() == "for one");
    CHECK(other.receive() == "for the other");
    one.send("again");
    CHECK(receive_from(f.guest_udp).second == from_one.second);
}

TEST_CASE("a UDP answer comes from the address that was asked") {
    Fixture f;
    const auto port = f.publish(Protocol::udp, ip::address_v4::any());
    UdpClient client{f, port, ip::make_address("127.0.0.2")};
    const auto text = pattern(60000);
    client.send(text);
    const auto [got, from] = receive_from(f.guest_udp);
    CHECK((got == text));
    f.guest_udp.send_to(asio::buffer(text), from);
    CHECK((client.receive() == text));
}

TEST_CASE("UDP over IPv6") {
    Fixture f;
    if (oracle::sh("ip -6 addr show dev lo").empty()) return;  // a kernel without IPv6
    const auto port = f.publish(Protocol::udp, ip::address_v6::any());
    udp::socket client{f.context, udp::v6()};
    client.connect({ip::address_v6::loopback(), port});
    client.send(asio::buffer("hello", 5));
    const auto [got, from] = receive_from(f.guest_udp);
    CHECK(got == "hello");
    f.guest_udp.send_to(asio::buffer("world", 5), from);
    std::string answer(16, '\0');
    answer.resize(client.receive(asio::buffer(answer)));
    CHECK(answer == "world");
}

TEST_CASE("a guest that refused a datagram gets the next one") {
    Fixture f;
    const auto port = f.publish(Protocol::udp);
    f.guest_udp.close();
    UdpClient client{f, port};
    client.send("lost");
    std::this_thread::sleep_for(100ms);
    f.space.run([&] { f.guest_udp.open(udp::v4()); });
    f.guest_udp.bind({local, guest_port});
    client.send("found");
    CHECK(receive_from(f.guest_udp).first == "found");
}

TEST_CASE("a UDP client that was silent for long is a new one, and there are only so many") {
    Fixture f;
    asio::io_context loop;
    SpareSockets sockets{f.space, SOCK_DGRAM};
    auto port = bind_port(Protocol::udp, local, 0);
    const auto forward =
        std::make_shared<UdpForward>(loop.get_executor(), std::move(port.socket),
                                     udp::endpoint{local, guest_port}, sockets, 200ms);
    forward->start();
    UdpClient client{f, port.port};
    client.send("first");
    loop.run_for(50ms);
    const auto first = receive_from(f.guest_udp).second;
    client.send("second");
    loop.run_for(400ms);
    CHECK(receive_from(f.guest_udp).second == first);
    const auto before = open_descriptors();
    client.send("third");
    loop.run_for(50ms);
    CHECK(receive_from(f.guest_udp).second != first);

    const DescriptorLimit limit{20000};
    for (std::size_t i = 0; i < UdpForward::most_flows + 500; ++i) {
        UdpClient{f, port.port}.send("x");
        loop.poll();
    }
    CHECK(open_descriptors() <= before + UdpForward::most_flows + 256);
}
