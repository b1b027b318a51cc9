// bench_network [ROUNDS]: set-up and tear-down of one `nat` network, by qvm's library, by the
// recipe as a shell script (ip + iptables) and by ip -batch + nft -f, interleaved. Root; the host
// that all three work on is a namespace of this program's own, and so are its mounts.
#include "netns/network.h"

#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "host.h"
#include "measure.h"
#include "netns/error.h"

using namespace qvm::netns;
namespace fs = std::filesystem;

namespace {

NetworkSpec spec_of_nat() {
    NetworkSpec spec;
    spec.mode = Mode::nat;
    spec.id = "bench";
    spec.guest_name = "bench";
    return spec;
}

/// A namespace's end holds the kernel's RTNL lock long after its links are gone from sight, and
/// whoever comes next would pay for whoever came before.
void settle() {
    ::usleep(250'000);
}

void measure_qvm(bench::Table& up, bench::Table& down, const fs::path& forwarding) {
    std::optional<RouteSocket> host;
    std::optional<Network> network;
    up.add("qvm", bench::time_of([&] {
               host.emplace();
               const auto spec = spec_of_nat();
               const auto facts = read_host_network(*host);
               auto claims = claim_networks(spec, facts);
               const auto plan = make_plan(spec, facts, claims);
               network.emplace(plan, make_guest(spec, plan), std::move(claims), *host, forwarding);
           }));
    const auto tap = network->take_tap();  // QEMU's to close, in its own exit
    down.add("qvm", bench::time_of([&] { network.reset(); }));
}

void measure_script(bench::Table& up, bench::Table& down, const std::string& name,
                    const std::string& script) {
    up.add(name, bench::time_of([&] { bench::sh(script + " up"); }));
    down.add(name, bench::time_of([&] { bench::sh(script + " down"); }));
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 30;
    const fs::path here = QVM_BENCH_DIR;
    bench::become_host();
    const fs::path forwarding = "/run/forwarding";
    fs::create_directory(forwarding);
    bench::Table up, down;
    for (int round = 0; round < rounds; ++round) {
        measure_qvm(up, down, forwarding);
        settle();
        measure_script(up, down, "ip -batch + nft -f", here / "recipe-batch.sh");
        settle();
        measure_script(up, down, "ip + iptables", here / "recipe.sh");
        settle();
    }
    std::printf("%d rounds, ms\n\n", rounds);
    up.print("set-up, until the TAP is usable");
    down.print("tear-down, until the call returns");
}
