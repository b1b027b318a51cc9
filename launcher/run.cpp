#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <fstream>

#include "launcher/background.h"
#include "launcher/commands.h"
#include "launcher/definition.h"
#include "launcher/events.h"
#include "launcher/failure.h"
#include "launcher/host.h"
#include "launcher/output.h"
#include "launcher/supervisor.h"
#include "launcher/terminal.h"
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

/// What is to be run: a throw-away VM, or one that was created.
struct Wanted {
    RunOptions options;
    std::optional<Definition> definition;
};

/// The network that is there already, if what was asked for is the same; else a new one.
netns::NetworkPlan join_or_plan(netns::NetworkSpec& spec, PreparedRun& prepared) {
    if (prepared.seat && prepared.seat->joined()) {
        const auto& plan = *prepared.seat->joined();
        if (prepared.options.vm.net) netns::check_same(spec, plan);
        spec.mode = plan.mode;
        return plan;
    }
    const auto host = netns::read_host_network(prepared.host);
    prepared.claims = netns::claim_networks(spec, host);
    return netns::make_plan(spec, host, prepared.claims);
}

/// The plan's own errors say what is wrong, and this of which option.
void plan_network(netns::NetworkSpec spec, PreparedRun& prepared, VmPlan& plan) {
    const auto& vm = prepared.options.vm;
    try {
        plan.network = join_or_plan(spec, prepared);
        const auto others =
            prepared.seat ? prepared.seat->others() : std::vector<netns::GuestPlan>{};
        plan.guest = netns::make_guest(spec, *plan.network, others);
    } catch (const netns::Error& error) {
        const auto option = fmt::format("--net {}", to_string(vm.net_or_default().mode));
        throw Failure(fmt::format("{}{}: {}", option,
                                  vm.group ? fmt::format(" in group '{}'", *vm.group) : "",
                                  error.what()));
    }
}

/// Bound before anything is created, and held: a port in use is an error now, and nobody can take
/// it later. QEMU binds those of its user networking itself; these are only tried.
void bind_ports(PreparedRun& prepared) {
    const auto& vm = prepared.options.vm;
    for (const auto& port : vm.publish) {
        const auto protocol = port.udp ? netns::Protocol::udp : netns::Protocol::tcp;
        try {
            auto bound = netns::bind_port(protocol, port.host_address, port.host_port);
            if (vm.net_or_default().mode != NetOption::Mode::user)
                prepared.ports.push_back(std::move(bound));
        } catch (const netns::Error& error) {
            throw Failure(fmt::format("--{}", error.what()));  // "publish PORT: ..."
        }
    }
}

void check_writable(const std::filesystem::path& path) {
    if (const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)}) return;
    throw Failure(
        fmt::format("--timings '{}': {}", path.string(), std::generic_category().message(errno)));
}

void open_disk(const Wanted& wanted, PreparedRun& prepared) {
    const auto& vm = prepared.options.vm;
    if (!vm.image) return;
    prepared.image =
        open_image(*vm.image, prepared.options.persist, vm.kernel.has_value(), vm.trust_backing);
    if (!wanted.definition) return;
    const auto& definition = *wanted.definition;
    if (prepared.image->facts.virtual_size != definition.virtual_size)
        throw Failure(fmt::format("open image '{}': it has {} bytes, and had {} when VM '{}' was "
                                  "created",
                                  vm.image->string(), prepared.image->facts.virtual_size,
                                  definition.virtual_size, definition.name),
                      "the VM's own disk is of no use without that image");
    prepared.overlay = open_overlay(DefinitionStore{prepared.directories}.path(definition.name) /
                                    DefinitionStore::overlay_name);
}

std::string choose_name(const Wanted& wanted, const Directories& directories,
                        const std::string& id) {
    const auto& options = wanted.options;
    if (wanted.definition) return wanted.definition->name;
    if (!options.name) return default_name(options.vm.image, id.substr(0, 4));
    if (DefinitionStore{directories}.exists(*options.name))
        throw Failure(fmt::format("--name '{}': is in use by a VM that was created", *options.name),
                      "qvm start " + *options.name);
    return *options.name;
}

Writes writes_of(const Wanted& wanted) {
    if (wanted.definition) return Writes::keep_overlay;
    return wanted.options.persist ? Writes::image : Writes::throw_away;
}

/// Checks all input and decides everything; creates nothing.
PreparedRun prepare(const Wanted& wanted) {
    const auto& options = wanted.options;
    const auto& vm = options.vm;
    const auto host = read_host_facts();
    check_host(vm, host, options.dry_run);
    const auto accel = choose_accel(vm.accel, host);
    if (vm.kernel) check_readable_file("--kernel", *vm.kernel);
    if (vm.initrd) check_readable_file("--initrd", *vm.initrd);
    if (options.timings_file && !options.dry_run) check_writable(*options.timings_file);

    PreparedRun prepared;
    prepared.options = options;
    prepared.directories = find_directories();
    prepared.named = wanted.definition.has_value();
    prepared.created = wanted.definition ? wanted.definition->created : timestamp();
    const auto id = random_id();
    const auto name = choose_name(wanted, prepared.directories, id);
    open_disk(wanted, prepared);
    if (!options.dry_run) bind_ports(prepared);
    if (vm.group && !options.dry_run) prepared.seat.emplace(prepared.directories, *vm.group, name);
    VmPlan network;
    if (const auto spec = network_spec(vm, name, id)) plan_network(*spec, prepared, network);
    const bool vhost = network.network && !netns::open_vhost(1).empty();
    const auto facts = prepared.image ? std::optional{prepared.image->facts} : std::nullopt;
    prepared.plan = make_vm_plan(vm, accel, name, facts, writes_of(wanted), network.network,
                                 network.guest, vhost);
    // Last, so that an error stands alone.
    if (!accel.why_not_kvm.empty() && !options.verbosity.quiet)
        say(fmt::format("qvm: no KVM here ({}): QEMU's TCG runs the guest, much slower",
                        accel.why_not_kvm));
    return prepared;
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

Reports reports(const RunOptions& options, const std::string& name, const Timings& timings,
                Background& background) {
    Reports result{[](const std::string&) {}, [](const std::string&) {}, [] {}, {}};
    if (!options.verbosity.quiet)
        result.note = [](const std::string& text) { say("qvm: " + text); };
    if (options.verbosity.debug)
        result.debug = [&timings](const std::string& text) {
            const std::chrono::duration<double, std::milli> since = Clock::now() - timings.exec();
            say(fmt::format("qvm: {:8.2f} ms: {}", since.count(), text));
        };
    if (options.detach)
        result.running = [&options, &timings, &background, name] {
            if (options.timings) write_timings(options, timings);
            background.detach(name + "\n");
        };
    else if (background.attached())
        result.detach = [&background] { background.detach({}); };
    return result;
}

int run(const Wanted& wanted, Timings& timings) {
    const auto& options = wanted.options;
    Background background;
    // Who may want to leave the VM behind needs a process to leave.
    if (!options.dry_run && (options.detach || RawTerminal::available()))
        if (const auto status = background.fork()) return *status;
    auto prepared = prepare(wanted);
    if (options.dry_run) {
        print(describe(prepared.plan));
        return status::ok;
    }
    const auto said = reports(options, prepared.plan.name, timings, background);
    const auto result = supervise(std::move(prepared), timings, said);
    timings.add("total", timings.exec(), Clock::now());
    if (!result.message.empty()) say("qvm: " + result.message);
    if (options.timings) write_timings(options, timings);
    return result.exit_status;
}

}  // namespace

int run(const RunOptions& options, Timings& timings) {
    Wanted wanted{options, std::nullopt};
    // Written when the directory may be another.
    auto& file = wanted.options.timings_file;
    if (file) file = std::filesystem::absolute(*file);
    return run(wanted, timings);
}

int start(const StartOptions& options, Timings& timings) {
    const auto directories = find_directories();
    Wanted wanted;
    if (const auto pid = supervisor_of(directories.run, options.name))
        throw Failure(fmt::format("VM '{}': is running already (pid {})", options.name, *pid));
    wanted.definition = DefinitionStore{directories}.read(options.name);
    wanted.options.vm = wanted.definition->vm;
    wanted.options.detach = true;
    wanted.options.verbosity = options.verbosity;
    return run(wanted, timings);
}

int create(const CreateOptions& options) {
    const auto directories = find_directories();
    const auto& vm = options.vm;
    check_host(vm, read_host_facts(), true);
    if (vm.kernel) check_readable_file("--kernel", *vm.kernel);
    if (vm.initrd) check_readable_file("--initrd", *vm.initrd);
    Definition definition;
    definition.vm = vm;
    if (vm.image)
        definition.virtual_size =
            open_image(*vm.image, false, vm.kernel.has_value(), vm.trust_backing)
                .facts.virtual_size;
    const auto id = random_id();
    definition.name = options.name.value_or(default_name(vm.image, id.substr(0, 4)));
    definition.created = timestamp();
    // A throw-away VM may have the name just now.
    const VmDirectory reserved{directories.run, definition.name};
    DefinitionStore{directories}.add(definition);
    announce(directories, "created", definition.name);
    print(definition.name + "\n");
    return status::ok;
}

}  // namespace qvm
