// bench_publish [ROUNDS]: a published TCP port by qvm's library and by pasta, both from the host's
// loopback to a server in a namespace, beside a plain connection through a veth, interleaved. And
// what an idle connection costs. Root, passt; the host is a namespace of this program's own.
#include "publish.h"

#include <sys/mount.h>
#include <sys/resource.h>

#include <array>
#include <fstream>
#include <utility>

#include "measure.h"

using namespace bench;

namespace {

constexpr unsigned short server_port = 7000;
constexpr unsigned short pasta_port = 7001;
constexpr unsigned short idle_port = 7002;
constexpr std::size_t volume = std::size_t{256} << 20;
constexpr std::size_t chunk = std::size_t{128} << 10;
constexpr int exchanges = 300;

/// What a connection is for; its first byte.
enum class Job : char { echo, sink, source };

void serve(tcp::socket& client) {
    std::vector<char> buffer(chunk);
    boost::system::error_code error;
    asio::read(client, asio::buffer(buffer, 1), error);
    const auto job = static_cast<Job>(buffer[0]);
    client.set_option(tcp::no_delay(true));
    if (job == Job::source) {
        for (std::size_t sent = 0; sent < volume && !error;)
            sent += asio::write(client, asio::buffer(buffer), error);
        return;
    }
    while (!error) {
        const auto size = client.read_some(asio::buffer(buffer), error);
        if (job == Job::echo && !error) asio::write(client, asio::buffer(buffer, size), error);
    }
    if (job == Job::sink) asio::write(client, asio::buffer(buffer, 1), error);
}

tcp::socket connect(asio::io_context& context, const tcp::endpoint& to, Job job) {
    tcp::socket socket{context};
    socket.connect(to);
    socket.set_option(tcp::no_delay(true));
    const char first = static_cast<char>(job);
    asio::write(socket, asio::buffer(&first, 1));
    return socket;
}

void measure_up(const tcp::endpoint& to) {
    asio::io_context context;
    const std::vector<char> buffer(chunk);
    auto socket = connect(context, to, Job::sink);
    for (std::size_t sent = 0; sent < volume;) sent += asio::write(socket, asio::buffer(buffer));
    socket.shutdown(tcp::socket::shutdown_send);
    char done = 0;
    asio::read(socket, asio::buffer(&done, 1));
}

void measure_down(const tcp::endpoint& to) {
    asio::io_context context;
    std::vector<char> buffer(chunk);
    auto socket = connect(context, to, Job::source);
    for (std::size_t got = 0; got < volume;) got += socket.read_some(asio::buffer(buffer));
}

struct Tables {
    bench::Table up, down, connect, echo;
};

void measure(Tables& tables, const std::string& name, const tcp::endpoint& to) {
    tables.up.add(name, bench::time_of([&] { measure_up(to); }));
    tables.down.add(name, bench::time_of([&] { measure_down(to); }));
    asio::io_context context;
    for (int i = 0; i < exchanges; ++i)
        tables.connect.add(name, bench::time_of([&] {
                               auto socket = connect(context, to, Job::echo);
                               exchange(socket);
                           }));
    auto socket = connect(context, to, Job::echo);
    for (int i = 0; i < exchanges; ++i)
        tables.echo.add(name, bench::time_of([&] { exchange(socket); }));
}

void wait_for(const tcp::endpoint& to) {
    for (int i = 0; i < 500; ++i) {
        try {
            asio::io_context context;
            auto socket = connect(context, to, Job::echo);
            return exchange(socket);
        } catch (const boost::system::system_error&) {
            ::usleep(10'000);
        }
    }
    throw std::runtime_error("nobody answers at port " + std::to_string(to.port()));
}

/// KiB of this process that are not of files.
long resident() {
    std::ifstream status{"/proc/self/status"};
    for (std::string word; status >> word;)
        if (word == "RssAnon:") {
            long size = 0;
            status >> size;
            return size;
        }
    return 0;
}

void serve_for_ever() {
    asio::io_context context;
    tcp::acceptor acceptor{context, {tcp::v4(), server_port}};
    for (;;) {
        auto client = acceptor.accept();
        serve(client);
    }
}

/// Echoes one byte a connection, and keeps it.
void hold_connections() {
    asio::io_context context;
    tcp::acceptor acceptor{context, {tcp::v4(), idle_port}};
    for (std::vector<tcp::socket> held;;) {
        held.push_back(acceptor.accept());
        char byte = 0;
        asio::read(held.back(), asio::buffer(&byte, 1));
        asio::write(held.back(), asio::buffer(&byte, 1));
    }
}

/// A path of `space`, which pasta needs; it goes with our mounts.
std::string mount(const Namespace& space) {
    const auto fd = "/proc/self/fd/" + std::to_string(space.fd());
    const std::string path = "/run/space";
    check(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), "make mounts private");
    check(::mount("none", "/run", "tmpfs", 0, nullptr), "mount /run");
    std::ofstream{path};
    check(::mount(fd.c_str(), path.c_str(), nullptr, MS_BIND, nullptr), "mount the namespace");
    return path;
}

/// Carries host port pasta_port to server_port in the namespace at `path`, in the foreground.
void run_pasta(const std::string& path) {
    const auto ports = std::to_string(pasta_port) + ":" + std::to_string(server_port);
    ::signal(SIGPIPE, SIG_DFL);
    ::execlp("pasta", "pasta", "-f", "-q", "--runas", "0", "-t", ports.c_str(), "-T", "none", "-u",
             "none", "-U", "none", "--netns", path.c_str(), nullptr);
    check(-1, "start pasta");
}

/// What `count` connections that have carried a byte each way leave in our memory.
void measure_idle(const Namespace& host, const Namespace& space, int count) {
    const auto guest = start(space, hold_connections);
    ::usleep(200'000);
    const Serving serving{space, {ip::address_v4::loopback(), idle_port}};
    std::array<int, 2> ready;
    check(::pipe(ready.data()), "make a pipe");
    const auto before = resident();
    const auto client = start(host, [&] {
        asio::io_context context;
        std::vector<tcp::socket> clients;
        for (int i = 0; i < count; ++i) {
            clients.emplace_back(context).connect(serving.endpoint);
            exchange(clients.back());
        }
        check(static_cast<int>(::write(ready[1], "x", 1)), "write");
        ::pause();
    });
    ::close(ready[1]);
    char byte = 0;
    const bool all = ::read(ready[0], &byte, 1) == 1;
    ::close(ready[0]);
    const auto after = resident();
    std::printf("%d idle connections%s: %ld KiB (before: %ld KiB), %.2f KiB each\n", count,
                all ? "" : " (not all)", after - before, before,
                static_cast<double>(after - before) / count);
    end(client);
    end(guest);
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
    ::signal(SIGPIPE, SIG_IGN);
    const rlimit descriptors{20000, 20000};
    check(::setrlimit(RLIMIT_NOFILE, &descriptors), "allow 20000 descriptors");
    check(::unshare(CLONE_NEWNET | CLONE_NEWNS), "make namespaces");
    const auto host = Namespace::current();
    const auto space = Namespace::create();
    sh("ip link set lo up; ip link add wan0 type veth peer name wan1 netns /proc/" +
       std::to_string(::getpid()) + "/fd/" + std::to_string(space.fd()) +
       "; ip addr add 203.0.113.2/24 dev wan0; ip link set wan0 up; ip route add default via "
       "203.0.113.1");
    space.run([] {
        sh("ip link set lo up; ip addr add 203.0.113.1/24 dev wan1; ip link set wan1 up;"
           "ip route add default via 203.0.113.2");
    });
    const auto server = start(space, serve_for_ever);
    const auto path = mount(space);
    const auto pasta = start(host, [&] { run_pasta(path); });
    Tables tables;
    {
        const Serving serving{space, {ip::address_v4::loopback(), server_port}};
        const std::vector<std::pair<const char*, tcp::endpoint>> paths{
            {"plain: veth", {ip::make_address("203.0.113.1"), server_port}},
            {"qvm", serving.endpoint},
            {"pasta", {ip::address_v4::loopback(), pasta_port}}};
        for (const auto& [name, to] : paths) wait_for(to);
        for (int round = 0; round < rounds; ++round)
            for (const auto& [name, to] : paths) measure(tables, name, to);
    }
    end(pasta);
    end(server);
    std::printf("%d rounds\n\n", rounds);
    tables.up.print("256 MiB to the server; ms");
    tables.down.print("256 MiB from the server; ms");
    tables.connect.print_latency("connect, one byte there and back, close; us");
    tables.echo.print_latency("one byte there and back; us");
    measure_idle(host, space, 5000);
}
