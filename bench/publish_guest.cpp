// bench_publish_guest DISK [ROUNDS]: a TCP port of a real guest (the demo disk), published by qvm's
// library into its namespace, by QEMU's hostfwd and by passt, interleaved. Root, passt; the host is
// a namespace of this program's own.
#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <fstream>
#include <map>
#include <memory>
#include <utility>

#include "measure.h"
#include "netns/network.h"
#include "publish.h"

using namespace bench;
using qvm::UniqueFd;

namespace {

constexpr unsigned short echo_port = 7000;
constexpr unsigned short sink_port = 7001;
constexpr unsigned short source_port = 7002;
constexpr std::size_t volume = std::size_t{32} << 20;
constexpr int exchanges = 100;

// What the guest's shell is told.
constexpr const char* servers =
    "nc -ll -p 7000 -e cat & nc -ll -p 7001 -e dd of=/dev/null bs=64k 2>/dev/null & "
    "nc -ll -p 7002 -e dd if=/dev/zero bs=64k 2>/dev/null &\n";

void execute(const std::vector<std::string>& words) {
    std::vector<char*> argv;
    for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    check(-1, "start '" + words[0] + "'");
}

std::vector<std::string> qemu(const std::string& disk, const std::string& netdev,
                              const std::string& mac = "52:54:00:12:34:56") {
    return {"qemu-system-x86_64",
            "-no-user-config",
            "-nodefaults",
            "-machine",
            "q35,vmport=off",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "256M",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-drive",
            "file=" + disk + ",format=qcow2,if=virtio,snapshot=on",
            "-netdev",
            netdev + ",id=net0",
            "-device",
            "virtio-net-pci,netdev=net0,romfile=,mac=" + mac};
}

/// A guest whose shell runs the servers above.
class Guest {
  public:
    Guest(const Namespace& host, const std::vector<std::string>& command,
          const std::vector<int>& inherited = {}) {
        std::array<int, 2> in, out;
        check(::pipe2(in.data(), O_CLOEXEC), "make a pipe");
        check(::pipe2(out.data(), O_CLOEXEC), "make a pipe");
        input_.reset(in[1]);
        output_.reset(out[0]);
        pid_ = start(host, [&] {
            ::dup2(in[0], STDIN_FILENO);
            ::dup2(out[1], STDOUT_FILENO);
            for (const int fd : inherited) ::fcntl(fd, F_SETFD, 0);
            execute(command);
        });
        ::close(in[0]);
        ::close(out[1]);
        wait_for("demo# ");
        const std::string text = servers;
        check(static_cast<int>(::write(input_.get(), text.data(), text.size())), "write");
        wait_for("demo# ");
    }
    Guest(const Guest&) = delete;
    Guest& operator=(const Guest&) = delete;
    ~Guest() { end(pid_); }

  private:
    void wait_for(const std::string& text) {
        for (std::string seen; seen.find(text) == std::string::npos;) {
            char byte = 0;
            if (::read(output_.get(), &byte, 1) != 1)
                throw std::runtime_error("the guest ended: " + seen);
            seen += byte;
        }
    }

    UniqueFd input_, output_;
    pid_t pid_ = 0;
};

/// Where a guest's three ports are on the host.
struct Path {
    std::string name;
    tcp::endpoint echo, sink, source;
};

Path ports_from(const std::string& name, unsigned short first) {
    const auto at = [&](int offset) {
        return tcp::endpoint{ip::address_v4::loopback(),
                             static_cast<unsigned short>(first + offset)};
    };
    return {name, at(0), at(1), at(2)};
}

tcp::socket connect(asio::io_context& context, const tcp::endpoint& to) {
    tcp::socket socket{context};
    socket.connect(to);
    socket.set_option(tcp::no_delay(true));
    return socket;
}

void measure_up(const tcp::endpoint& to) {
    asio::io_context context;
    auto socket = connect(context, to);
    asio::write(socket, asio::buffer(std::vector<char>(volume)));
    socket.shutdown(tcp::socket::shutdown_send);
    char byte = 0;
    boost::system::error_code end;
    asio::read(socket, asio::buffer(&byte, 1), end);
}

/// False where the connection ended before all had come.
bool measure_down(const tcp::endpoint& to) {
    asio::io_context context;
    auto socket = connect(context, to);
    std::vector<char> bytes(volume);
    boost::system::error_code end;
    return asio::read(socket, asio::buffer(bytes), end) == volume;
}

struct Tables {
    Table up, down, connect, echo;
    std::map<std::string, int> cut_off;  ///< transfers that ended early, and are not in `down`
};

void measure(Tables& tables, const Path& path) {
    tables.up.add(path.name, time_of([&] { measure_up(path.sink); }));
    bool all_came = false;
    const auto down = time_of([&] { all_came = measure_down(path.source); });
    if (all_came)
        tables.down.add(path.name, down);
    else
        ++tables.cut_off[path.name];
    asio::io_context context;
    for (int i = 0; i < exchanges / 5; ++i)
        tables.connect.add(path.name, time_of([&] {
                               auto socket = connect(context, path.echo);
                               exchange(socket);
                           }));
    auto socket = connect(context, path.echo);
    for (int i = 0; i < exchanges; ++i)
        tables.echo.add(path.name, time_of([&] { exchange(socket); }));
}

/// qvm's own network, and its ports.
struct OwnNetwork {
    explicit OwnNetwork(const std::filesystem::path& directory) {
        NetworkSpec spec;
        spec.mode = Mode::nat;
        spec.id = "bench";
        spec.guest_name = "bench";
        const auto facts = read_host_network(host);
        auto claims = claim_networks(spec, facts);
        plan = make_plan(spec, facts, claims);
        guest = make_guest(spec, plan);
        network.emplace(plan, guest, std::move(claims), host, directory / "leases");
        std::ofstream{directory / "hosts"} << dns_hosts(plan, {guest});
        std::ofstream{directory / "dhcp-hosts"} << dhcp_hosts(plan, {guest});
        tap = network->take_tap();
        vhost = network->take_vhost();
    }
    std::string netdev() const {
        auto text = "tap,fd=" + std::to_string(tap.at(0).get());
        if (!vhost.empty()) text += ",vhost=on,vhostfd=" + std::to_string(vhost.at(0).get());
        return text;
    }
    std::vector<int> inherited() const {
        std::vector<int> result;
        for (const auto& fd : tap) result.push_back(fd.get());
        for (const auto& fd : vhost) result.push_back(fd.get());
        return result;
    }

    RouteSocket host;
    NetworkPlan plan;
    GuestPlan guest;
    std::optional<Network> network;
    std::vector<UniqueFd> tap, vhost;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::fprintf(stderr, "usage: bench_publish_guest DISK [ROUNDS]\n");
        return 125;
    }
    const std::string disk = argv[1];
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 10;
    ::signal(SIGPIPE, SIG_IGN);
    become_host();
    const auto host = Namespace::current();
    char name[] = "/tmp/qvm-bench-XXXXXX";
    const std::filesystem::path directory = ::mkdtemp(name);
    ::chmod(name, 0755);
    const auto socket = (directory / "passt.socket").string();

    OwnNetwork own{directory};
    const auto dnsmasq = start(own.network->space(),
                               [&] { execute(dnsmasq_command(own.plan, directory.string())); });
    const auto passt = start(host, [&] {
        execute({"passt", "-f", "-q", "--runas", "0", "-s", socket, "-t",
                 "7200:7000,7201:7001,7202:7002"});
    });
    ::usleep(500'000);
    {
        const Guest in_namespace{host, qemu(disk, own.netdev(), own.guest.mac), own.inherited()};
        const Guest behind_slirp{
            host, qemu(disk,
                       "user,hostfwd=tcp:127.0.0.1:7100-:7000,hostfwd=tcp:127.0.0.1:7101-:7001,"
                       "hostfwd=tcp:127.0.0.1:7102-:7002")};
        const Guest behind_passt{
            host, qemu(disk, "stream,server=off,addr.type=unix,addr.path=" + socket)};
        const auto serve = [&](unsigned short port) {
            return std::make_unique<Serving>(own.network->space(),
                                             tcp::endpoint{own.guest.address, port});
        };
        const auto echo = serve(echo_port), sink = serve(sink_port), source = serve(source_port);
        const std::vector<Path> paths{{"qvm", echo->endpoint, sink->endpoint, source->endpoint},
                                      ports_from("QEMU hostfwd", 7100),
                                      ports_from("passt", 7200)};
        Tables tables;
        for (int round = 0; round < rounds; ++round)
            for (const auto& path : paths) measure(tables, path);
        std::printf("%d rounds\n\n", rounds);
        tables.up.print("32 MiB to the guest; ms");
        tables.down.print("32 MiB from the guest; ms");
        for (const auto& [path, times] : tables.cut_off)
            std::printf("%s: %d of %d ended early\n\n", path.c_str(), times, rounds);
        tables.connect.print_latency("connect, one byte there and back, close; us");
        tables.echo.print_latency("one byte there and back; us");
    }
    end(passt);
    end(dnsmasq);
    std::filesystem::remove_all(directory);
}
