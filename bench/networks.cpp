// bench_networks [ROUNDS]: many `nat` networks at once (namespace, TAP, veth, rules; no guest),
// each in a process of its own as in life: how long until all are up, until all are gone from the
// host, what each takes of memory, and what one more costs beside those that stand. Root; the host
// is a namespace of this program's own.
#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "host.h"
#include "measure.h"
#include "netns/error.h"
#include "netns/network.h"

using namespace qvm;
using namespace qvm::netns;
namespace fs = std::filesystem;

namespace {

const fs::path leases = "/run/leases";

struct Made {
    explicit Made(int number) {
        NetworkSpec spec;
        spec.mode = Mode::nat;
        spec.id = std::to_string(number);
        spec.guest_name = "bench";
        const auto facts = read_host_network(host);
        auto claims = claim_networks(spec, facts);
        const auto plan = make_plan(spec, facts, claims);
        network.emplace(plan, make_guest(spec, plan), std::move(claims), host, leases);
    }
    RouteSocket host;
    std::optional<Network> network;
};

struct Pipe {
    Pipe() { check(::pipe2(ends.data(), O_CLOEXEC), "make a pipe"); }
    ~Pipe() {
        for (const int fd : ends) ::close(fd);
    }
    void close_write_end() { ::close(std::exchange(ends[1], -1)); }
    std::array<int, 2> ends{};
};

void await_end(int fd) {
    char byte;
    while (::read(fd, &byte, 1) > 0) {
    }
}

/// Memory that the machine has to give, in KiB.
double available() {
    std::ifstream file{"/proc/meminfo"};
    for (std::string line; std::getline(file, line);)
        if (line.starts_with("MemAvailable:")) return std::atof(line.c_str() + 13);
    return 0;
}

/// Processes with a network each, which begin and end at the same moment.
class Fleet {
  public:
    Fleet(int count, int first) {
        for (int i = 0; i < count; ++i) children_.push_back(start(first + i));
    }
    ~Fleet() { end(); }
    Fleet(const Fleet&) = delete;
    Fleet& operator=(const Fleet&) = delete;

    /// ms until the last is up.
    double begin() {
        const auto start = bench::Clock::now();
        begin_.close_write_end();
        char byte;
        for (std::size_t i = 0; i < children_.size(); ++i)
            if (::read(ready_.ends[0], &byte, 1) != 1) throw std::runtime_error("a child failed");
        return bench::since(start);
    }
    /// ms until nothing of them is left on the host.
    double end() {
        if (children_.empty()) return 0;
        const auto start = bench::Clock::now();
        if (end_.ends[1] >= 0) end_.close_write_end();
        for (const auto child : children_) ::waitpid(child, nullptr, 0);
        children_.clear();
        // Their host ends may go after them.
        bench::await_no_links();
        return bench::since(start);
    }

  private:
    pid_t start(int number) {
        const auto child = ::fork();
        if (child != 0) return child;
        try {
            begin_.close_write_end();
            end_.close_write_end();
            await_end(begin_.ends[0]);
            std::optional<Made> made{number};
            if (::write(ready_.ends[1], "", 1) != 1) ::_exit(1);
            await_end(end_.ends[0]);
            {
                // QEMU's to close, in its own exit.
                auto tap = made->network->take_tap();
                const std::jthread qemu([&] { tap.clear(); });
                made.reset();
            }
            ::_exit(0);
        } catch (const std::exception& error) {
            std::fprintf(stderr, "%d: %s\n", number, error.what());
            ::_exit(1);
        }
    }

    Pipe begin_, ready_, end_;
    std::vector<pid_t> children_;
};

/// The kernel destroys namespaces long after they are gone from sight.
void settle(int count) {
    ::usleep(300'000 + 30'000 * static_cast<unsigned>(count));
}

/// One network, up and down again, in this process.
double one_more(int number) {
    std::optional<Made> made;
    const auto time = bench::time_of([&] { made.emplace(number); });
    const auto tap = made->network->take_tap();  // QEMU's to close, in its own exit
    made.reset();
    return time;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
    const std::array sizes{1, 10, 50, 100};
    bench::become_host();
    bench::Table up, down, more, memory;
    for (int round = 0; round < rounds; ++round) {
        for (const int size : sizes) {
            const auto name = std::to_string(size) + " at once";
            Fleet fleet{size, 100};
            const double before = available();
            up.add(name, fleet.begin());
            // Fewer drown in what else the machine does.
            if (size >= 50) memory.add(name, (before - available()) / size);
            for (int i = 0; i < 5; ++i) {
                more.add("one more beside " + std::to_string(size), one_more(1000 + i));
                settle(1);
            }
            down.add(name, fleet.end());
            settle(size);
        }
        for (int i = 0; i < 5; ++i) {
            more.add("the first", one_more(1000 + i));
            settle(1);
        }
    }
    std::printf("%d rounds\n\n", rounds);
    up.print("until the last is up; ms");
    down.print("until the last is gone from the host; ms");
    more.print("one network up; ms");
    memory.print("memory each, kernel's included; KiB");
}
