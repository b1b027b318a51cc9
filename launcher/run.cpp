#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <fstream>

#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/host.h"
#include "launcher/output.h"
#include "launcher/supervisor.h"
#include "netns/error.h"
#include "netns/tap.h"

namespace qvm {

namespace {

std::string random_id() {
    std::uint32_t number = 0;
    if (::getrandom(&number, sizeof number, 0) != sizeof number)
        throw Failure("read random numbers");
    return fmt::format("{:08x}", number);
}

/// A second line of the plan's own errors would be lost in the middle of a sentence.
netns::NetworkPlan plan_network(const netns::NetworkSpec& spec, PreparedRun& prepared) {
    try {
        const auto host = netns::read_host_network(prepared.host);
        prepared.claims = netns::claim_networks(spec, host);
        return netns::make_plan(spec, host, prepared.claims);
    } catch (const netns::Error& error) {
        throw Failure(
            fmt::format("--net {}: {}", to_string(prepared.options.net.mode), error.what()));
    }
}

void check_writable(const std::filesystem::path& path) {
    if (const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)}) return;
    throw Failure(
        fmt::format("--timings '{}': {}", path.string(), std::generic_category().message(errno)));
}

/// Checks all input and decides everything; creates nothing.
PreparedRun prepare(const RunOptions& options) {
    const auto host = read_host_facts();
    check_host(options, host);
    const auto accel = choose_accel(options.accel, host);
    if (options.kernel) check_readable_file("--kernel", *options.kernel);
    if (options.initrd) check_readable_file("--initrd", *options.initrd);
    if (options.timings_file && !options.dry_run) check_writable(*options.timings_file);

    PreparedRun prepared;
    prepared.options = options;
    prepared.directories = find_directories();
    if (options.image)
        prepared.image = open_image(*options.image, options.persist, options.kernel.has_value(),
                                    options.trust_backing);
    const auto id = random_id();
    const auto name = options.name.value_or(default_name(options.image, id.substr(0, 4)));
    std::optional<netns::NetworkPlan> network;
    if (const auto spec = network_spec(options.net, name, id))
        network = plan_network(*spec, prepared);
    const bool vhost = network && !netns::open_vhost(1).empty();
    const auto facts = prepared.image ? std::optional{prepared.image->facts} : std::nullopt;
    prepared.plan = make_vm_plan(options, accel, name, facts, network, vhost);
    // Last, so that an error stands alone.
    if (!accel.why_not_kvm.empty() && !options.quiet)
        say(fmt::format("qvm: no KVM here ({}): QEMU's TCG runs the guest, much slower",
                        accel.why_not_kvm));
    return prepared;
}

Reports reports(const RunOptions& options, const Timings& timings) {
    Reports result{[](const std::string&) {}, [](const std::string&) {}};
    if (!options.quiet) result.note = [](const std::string& text) { say("qvm: " + text); };
    if (options.debug)
        result.debug = [&timings](const std::string& text) {
            const std::chrono::duration<double, std::milli> since = Clock::now() - timings.exec();
            say(fmt::format("qvm: {:8.2f} ms: {}", since.count(), text));
        };
    return result;
}

void write_timings(const RunOptions& options, const Timings& timings) {
    if (!options.timings_file) {
        auto text = timings.to_text();
        text.pop_back();
        return say(text);
    }
    std::ofstream file{*options.timings_file, std::ios::trunc};
    file << timings.to_json() << std::flush;
    if (!file)
        throw Failure(fmt::format("--timings: write '{}' failed", options.timings_file->string()));
}

}  // namespace

int run(const RunOptions& options, Timings& timings) {
    auto prepared = prepare(options);
    if (options.dry_run) {
        print(describe(prepared.plan));
        return status::ok;
    }
    const auto result = supervise(std::move(prepared), timings, reports(options, timings));
    timings.add("total", timings.exec(), Clock::now());
    if (!result.message.empty()) say("qvm: " + result.message);
    if (options.timings) write_timings(options, timings);
    return result.exit_status;
}

}  // namespace qvm
