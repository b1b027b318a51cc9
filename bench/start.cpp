// bench_start QVM DISK [ROUNDS]: from exec to running CPUs, and what qvm adds to it: `qvm run` with
// its network, disk overlay and DHCP, beside QEMU alone with the same machine, interleaved. Root;
// the host is a namespace of this program's own.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "host.h"
#include "launcher/process.h"
#include "measure.h"
#include "netns/error.h"
#include "qmp/client.h"

using namespace qvm;
using namespace std::chrono_literals;
namespace asio = boost::asio;
namespace fs = std::filesystem;

namespace {

/// The machine that qvm gives a guest, without anything of qvm's around it.
std::vector<std::string> bare_qemu(const std::string& disk) {
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
            "1024M",
            "-display",
            "none",
            "-S",
            "-chardev",
            "socket,id=qmp,fd=3",
            "-mon",
            "chardev=qmp,mode=control",
            "-serial",
            "null",
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtio-rng-pci",
            "-device",
            "pvpanic-pci",
            "-drive",
            "file=" + disk + ",format=qcow2,if=virtio,snapshot=on",
            "-netdev",
            "user,id=net0,restrict=on",
            "-device",
            "virtio-net-pci,netdev=net0,romfile="};
}

double measure_bare(const std::string& disk) {
    std::array<int, 2> ends;
    netns::check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), "socketpair");
    const UniqueFd theirs{ends[1]};
    asio::io_context context;
    qmp::Client monitor{context.get_executor(), ends[0]};
    const auto start = bench::Clock::now();
    SpawnSpec spec;
    spec.argv = bare_qemu(disk);
    spec.inherit = {{theirs.get(), 3}};
    spec.stderr_fd = STDERR_FILENO;
    const auto qemu = Child::spawn(spec);
    double elapsed = 0;
    asio::co_spawn(
        context,
        [&]() -> asio::awaitable<void> {
            co_await monitor.handshake(60s);
            co_await monitor.execute("cont", {}, 60s);
            elapsed = bench::since(start);
            context.stop();
        },
        [](std::exception_ptr failure) {
            if (failure) std::rethrow_exception(failure);
        });
    context.run();
    return elapsed;
}

std::string read(const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream{path}.rdbuf();
    return text.str();
}

/// A namespace's end holds the kernel's RTNL lock for a while, and the next run would pay for it.
void settle() {
    ::usleep(250'000);
}

/// Adds the phases of one run to `table`.
void measure_qvm(bench::Table& table, const std::string& qvm, const std::string& mode,
                 const std::string& disk, const fs::path& directory) {
    const auto json = directory / "timings.json";
    // The time-out ends it as soon as it runs: only what comes before is measured.
    const auto result = run_tool(
        {qvm, "run", "-q", "--net", mode, "--timeout", "1s", "--timings=" + json.string(), disk});
    if (result.status.code != 124) throw std::runtime_error(result.err);
    const auto timings = boost::json::parse(read(json));
    for (const auto& phase : timings.at("phases").as_array()) {
        const std::string name{phase.at("name").as_string()};
        const auto ms = phase.at("ms").to_number<double>();
        if (name == "running")
            table.add("qvm " + mode + ": exec to CPUs run",
                      phase.at("start_ms").to_number<double>() + ms);
        else if (name != "total")
            table.add("  " + mode + ": " + name, ms);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: bench_start QVM DISK [ROUNDS]\n");
        return 125;
    }
    const std::string qvm = argv[1], disk = argv[2];
    const int rounds = argc > 3 ? std::atoi(argv[3]) : 15;
    char name[] = "/tmp/qvm-bench-XXXXXX";
    const fs::path directory = ::mkdtemp(name);
    ::setenv("QVM_RUN_DIR", (directory / "run").c_str(), 1);
    ::setenv("QVM_CACHE_DIR", (directory / "cache").c_str(), 1);
    bench::become_host();
    bench::Table table;
    for (int round = 0; round < rounds; ++round) {
        table.add("QEMU alone: exec to CPUs run", measure_bare(disk));
        for (const char* mode : {"none", "isolated", "nat"}) {
            measure_qvm(table, qvm, mode, disk, directory);
            settle();
        }
    }
    std::printf("%d rounds, ms\n\n", rounds);
    table.print("from exec to running CPUs");
    fs::remove_all(directory);
}
