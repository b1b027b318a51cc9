#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "launcher/audit.h"
#include "launcher/background.h"
#include "launcher/cloud_init.h"
#include "launcher/commands.h"
#include "launcher/confinement.h"
#include "launcher/definition.h"
#include "launcher/events.h"
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/host.h"
#include "launcher/json_text.h"
#include "launcher/machine.h"
#include "launcher/memory_file.h"
#include "launcher/output.h"
#include "launcher/privilege.h"
#include "launcher/pull.h"
#include "launcher/readiness.h"
#include "launcher/ssh_key.h"
#include "launcher/supervisor.h"
#include "launcher/terminal.h"
#include "launcher/tpm.h"
#include "launcher/volumes.h"
#include "launcher/warm.h"
#include "netns/error.h"
#include "netns/tap.h"

namespace qvm {

namespace json = boost::json;

namespace {

std::string id_name(const VmOptions& vm, const std::string& id) {
    return default_name(vm, id.substr(0, 4));
}

void warn(const RunOptions& options, const std::string& text) {
    if (!options.verbosity.quiet) say("qvm: " + text);
}

/// The network that is there already, if what was asked for is the same; else a new one.
netns::NetworkPlan join_or_plan(netns::NetworkSpec& spec, PreparedRun& prepared) {
    if (prepared.seat && prepared.seat->joined()) {
        const auto& plan = *prepared.seat->joined();
        if (prepared.options.vm.net) netns::check_same(spec, plan);
        const auto wanted = prepared.options.vm.uplink;
        if (wanted != Uplink::automatic && plan.uplink && plan.uplink->kind != spec.uplink)
            throw netns::Error(fmt::format("uplink {}", to_string(wanted)),
                               fmt::format("the group's is {}", to_string(plan.uplink->kind)));
        if (spec.port_isolation && !plan.port_isolation)
            throw netns::Error("port isolation", "the group's network has none");
        if (spec.allow_host && !plan.allow_host)
            throw netns::Error("allow the host", "the group's network does not");
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

/// The guest's place on a bridge of the host's.
void plan_port(const std::string& name, bool vhost, PreparedRun& prepared) {
    const auto net = prepared.options.vm.net_or_default();
    try {
        const auto mtu = netns::read_bridge_mtu(prepared.host, net.bridge);
        prepared.plan.port =
            port_plan(net, name, prepared.id, mtu, read_file("/etc/machine-id").value_or(""));
    } catch (const netns::Error& error) {
        throw Failure(fmt::format("--net: {}", error.what()));
    }
    prepared.plan.qemu.nic = nic_of(*prepared.plan.port, vhost);
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

void check_writable(const char* option, const std::filesystem::path& path) {
    if (const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)}) return;
    throw Failure(
        fmt::format("{} '{}': {}", option, path.string(), std::generic_category().message(errno)));
}

bool is_same_file(int one, int other) {
    struct stat a {
    }, b{};
    return ::fstat(one, &a) == 0 && ::fstat(other, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/// What a snapshot of it would have to find again as it is.
void note_others(const std::optional<Firmware>& firmware, PreparedRun& prepared) {
    const auto& vm = prepared.options.vm;
    for (std::size_t i = 0; i < vm.drives.size(); ++i)
        prepared.others.push_back(prepared.drives[i].known.front());
    std::vector<std::filesystem::path> files;
    for (const auto& file : {vm.kernel, vm.initrd})
        if (file) files.push_back(*file);
    if (vm.firmware->kind == FirmwareOption::Kind::file) files.push_back(vm.firmware->file);
    if (firmware) files.insert(files.end(), {firmware->code, firmware->variables});
    for (const auto& file : files) {
        const UniqueFd fd{::open(file.c_str(), O_RDONLY | O_CLOEXEC)};
        prepared.others.push_back(known_file(file, {}, fd.get()));
    }
}

/// After the image.
void open_drives(PreparedRun& prepared) {
    std::vector<std::pair<int, bool>> others;  // that QEMU opens, and whether it writes to them
    if (prepared.image) others.emplace_back(prepared.image->fd.get(), prepared.options.persist);
    for (const auto& drive : prepared.options.vm.drives) {
        prepared.drives.push_back(open_drive(drive));
        const int fd = prepared.drives.back().fd.get();
        for (const auto& [other, writes] : others)
            if (is_same_file(fd, other) && (writes || !drive.read_only))
                throw Failure(fmt::format(
                    "--drive '{}': the guest has that file as another disk, and one of the two is "
                    "written to",
                    drive.file.string()));
        others.emplace_back(fd, !drive.read_only);
    }
}

Snapshot open_snapshot(const std::string& name, const Directories& directories) {
    if (name.find('/') != std::string::npos)
        return Snapshot{std::filesystem::absolute(name), "snapshot " + name};
    return SnapshotStore{directories.snapshots()}.open(name);
}

/// The machine is what was saved; what the user may say of it is added.
void begin_with(Snapshot snapshot, PreparedRun& prepared) {
    auto& vm = prepared.options.vm;
    prepared.snapshot.emplace(std::move(snapshot));
    try {
        vm = clone_options(prepared.snapshot->manifest(), vm);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("{}: {}", prepared.snapshot->what(), failure.what()));
    }
    prepared.others = prepared.snapshot->manifest().others;
    const auto& hook = prepared.options.restore_hook;
    if (!hook) return;
    check_readable_file("--restore-hook", *hook);
    prepared.restore_hook = read_file(*hook).value_or("");
    constexpr std::size_t longest = 100 * 1024;  // of one argument, which Linux takes (128 KiB)
    if (prepared.restore_hook.size() > longest)
        throw Failure(fmt::format("--restore-hook '{}': is longer than {} KiB", hook->string(),
                                  longest / 1024));
}

void open_disks_of_snapshot(PreparedRun& prepared) {
    const auto& snapshot = *prepared.snapshot;
    prepared.image = snapshot.open_disk();
    const auto drives = prepared.options.vm.drives.size();
    for (std::size_t i = 0; i < prepared.others.size(); ++i) {
        auto fd = snapshot.open(prepared.others[i]);  // the others are looked at, too
        if (i >= drives) continue;
        prepared.drives.push_back(
            {.fd = std::move(fd), .facts = {.format = prepared.others[i].format}});
    }
}

QemuDrive seed_drive() {
    return {.format = "raw", .read_only = true, .serial = "cidata"};
}

/// The machine's own shape, which nobody may change any more.
void take_machine(PreparedRun& prepared) {
    const auto& snapshot = *prepared.snapshot;
    auto& qemu = prepared.plan.qemu;
    qemu.machine = snapshot.manifest().machine.machine;
    qemu.cpu = snapshot.manifest().cpu;
    qemu.ready_ports = snapshot.manifest().ready_ports;
    qemu.incoming = true;
    // Volumes are plugged in when it is there, and share its memory: it is a copy then.
    qemu.volumes.clear();
    if (snapshot.has(snapshot_files::memory) && prepared.options.vm.volumes.empty())
        qemu.memory_file = snapshot.directory() / snapshot_files::memory;
    if (!snapshot.has(snapshot_files::seed)) return;
    qemu.drives.push_back(seed_drive());
    prepared.drives.push_back({.fd = snapshot.open(snapshot_files::seed), .facts = {}});
}

/// What is in the store stays what its name there says.
void refuse_stored(const std::filesystem::path& image, const PreparedRun& prepared) {
    const ImageStore store{prepared.directories.images()};
    if (!store.has_blob(image)) return;
    const auto& name = prepared.options.vm.image_name;
    throw Failure(
        fmt::format("--persist: '{}' is an image of qvm's store, which is never written to",
                    name.value_or(image.string())),
        fmt::format("qvm create; or qvm image export {} FILE", name.value_or("NAME")));
}

void open_disk(PreparedRun& prepared, const std::optional<Definition>& definition) {
    const auto& vm = prepared.options.vm;
    if (!vm.image) return;
    if (prepared.options.persist) refuse_stored(*vm.image, prepared);
    prepared.image = open_image(vm, prepared.options.persist);
    if (!definition) return;
    if (prepared.image->facts.virtual_size != definition->virtual_size)
        throw Failure(fmt::format("open image '{}': it has {} bytes, and had {} when VM '{}' was "
                                  "created",
                                  vm.image_text(), prepared.image->facts.virtual_size,
                                  definition->virtual_size, definition->name),
                      "the VM's own disk is of no use without that image");
    if (definition->image_modified != 0 &&
        prepared.image->known.front().modified != definition->image_modified)
        warn(prepared.options,
             fmt::format("image '{}' was written to since VM '{}' was created: what the VM's own "
                         "disk says no longer fits it",
                         vm.image_text(), definition->name));
    prepared.overlay =
        open_own("overlay", DefinitionStore{prepared.directories}.path(definition->name) /
                                DefinitionStore::overlay_name);
}

/// The UEFI that a VM's options ask for; nothing where they ask for none. Throws Failure.
std::optional<Firmware> choose_firmware(const VmOptions& vm) {
    if (!has_uefi(vm)) return std::nullopt;
    if (auto firmware = find_firmware(*vm.arch, vm.secure_boot)) return firmware;
    throw Failure(
        fmt::format("{}: no such firmware for {} is installed",
                    vm.secure_boot ? "--secure-boot" : "--firmware uefi", to_string(*vm.arch)),
        fmt::format("apt-get install {}", machine_of(*vm.arch).firmware_package));
}

/// A machine that is there already has the one that it was made with. Throws Failure.
std::optional<Firmware> firmware_of(const PreparedRun& prepared,
                                    const std::optional<Definition>& definition) {
    const auto firmware = prepared.snapshot ? prepared.snapshot->manifest().firmware
                          : definition      ? definition->firmware
                                            : choose_firmware(prepared.options.vm);
    if (firmware)
        for (const auto& file : {firmware->code, firmware->variables})
            check_readable_file("firmware", file);
    return firmware;
}

/// Opens the firmware, and what it and the TPM write to: the VM's own, or what goes with it.
void open_firmware(const std::optional<Firmware>& firmware, PreparedRun& prepared) {
    const DefinitionStore store{prepared.directories};
    const auto own = [&](const char* file) {
        return open_own(file, store.path(*prepared.options.name) / file);
    };
    if (firmware) {
        prepared.code = open_code(*firmware);
        prepared.variables =
            prepared.named ? own(DefinitionStore::variables_name) : make_variables(*firmware);
    }
    if (prepared.options.vm.tpm)
        prepared.tpm_state = prepared.named ? own(DefinitionStore::tpm_name) : make_tpm_state();
}

/// An id by which a VM can be named that its user did not name.
std::string free_id(const VmOptions& vm, const Directories& directories) {
    constexpr int most_tries = 1000;
    const DefinitionStore store{directories};
    for (int tries = 0; tries < most_tries; ++tries) {
        auto id = random_id();
        const auto name = id_name(vm, id);
        if (!supervisor_of(directories.run, name) && !store.exists(name)) return id;
    }
    throw Failure("choose a name for the VM: all are taken", "--name NAME");
}

/// From here on nobody else can start, create or remove a VM of that name.
void hold(const std::string& name, PreparedRun& prepared) {
    if (!prepared.options.dry_run) {
        prepared.blocked = std::make_unique<BlockedSignals>();
        prepared.directory.emplace(prepared.directories.run, name);
    }
    if (!prepared.named && DefinitionStore{prepared.directories}.exists(name))
        throw Failure(fmt::format("--name '{}': is in use by a VM that was created", name),
                      "qvm start " + name);
}

Writes writes_of(const PreparedRun& prepared) {
    if (prepared.named) return Writes::keep_overlay;
    return prepared.options.persist ? Writes::image : Writes::throw_away;
}

/// An image that is written to is set up by cloud-init only where its user says so.
bool wants_seed(const PreparedRun& prepared) {
    const auto& vm = prepared.options.vm;
    if (vm.user_data || !vm.ssh_keys.empty()) return true;
    return vm.image && !prepared.options.persist;
}

/// A VM that was created stays the same machine from one start to the next.
std::string instance_id(const PreparedRun& prepared, const std::string& id) {
    if (!prepared.named) return "qvm-" + id;
    return fmt::format("qvm-{}-{}", prepared.plan.name, prepared.created);
}

void add_seed(PreparedRun& prepared, const std::string& id) {
    if (!wants_seed(prepared)) return;
    const auto& vm = prepared.options.vm;
    auto& plan = prepared.plan;
    CloudInit cloud_init{.instance_id = instance_id(prepared, id), .hostname = plan.name};
    if (plan.guest) cloud_init.mac = plan.guest->mac;
    try {
        if (auto key = own_public_key(prepared.directories, !prepared.options.dry_run))
            cloud_init.ssh_keys.push_back(std::move(*key));
    } catch (const Failure& failure) {  // nobody has asked for it yet
        warn(prepared.options, fmt::format("no key for qvm ssh: {}", failure.what()));
    }
    for (const auto& file : vm.ssh_keys)
        for (auto& key : read_public_keys(file)) cloud_init.ssh_keys.push_back(std::move(key));
    // A guest without an agent has its volumes, too.
    if (!plan.volumes.empty()) cloud_init.boot_command = mount_command(plan.volumes);
    if (vm.user_data) cloud_init.user_data = read_user_data(*vm.user_data);
    plan.seed = seed_files(cloud_init);
    plan.qemu.drives.push_back(seed_drive());
    if (prepared.options.dry_run) return;
    const MemoryFile seed{images::make_seed(plan.seed)};
    prepared.drives.push_back({.fd = seed.open_for_reading(), .facts = {}});
}

/// Whether a VM's image is there, or has to be pulled first.
enum class ImageIs { here, to_come };

/// Checks all input and decides everything; creates nothing but the VM's directory. A VM that was
/// created is known by its name alone: the options of a definition are read here. `snapshot` is the
/// one that the options name, where it is open already.
PreparedRun prepare(const RunOptions& options, bool created,
                    std::optional<Snapshot> snapshot = std::nullopt,
                    ImageIs image = ImageIs::here) {
    PreparedRun prepared;
    prepared.options = options;
    prepared.directories = find_directories();
    prepared.named = created;
    prepared.created = timestamp();
    auto& vm = prepared.options.vm;
    std::optional<Definition> definition;
    if (created) {
        hold(*options.name, prepared);
        definition = DefinitionStore{prepared.directories}.read(*options.name);
        prepared.created = definition->created;
        vm = definition->vm;
    }
    if (vm.snapshot && !snapshot)
        snapshot.emplace(open_snapshot(*vm.snapshot, prepared.directories));
    if (snapshot) begin_with(std::move(*snapshot), prepared);
    UniqueFd image_lock;
    if (image == ImageIs::here) image_lock = find_image(vm, prepared.directories, !options.dry_run);
    settle_machine(vm, host_architecture());
    check_wait_for(prepared.options);
    const auto host = read_host_facts();
    check_host(vm, host, options.dry_run);
    prepared.privileged = host.privileged;
    const bool may_have_kvm = vm.accel != Accel::tcg && *vm.arch == host_architecture();
    const auto accel = choose_accel(vm.accel, *vm.arch, host_architecture(),
                                    may_have_kvm ? read_kvm() : KvmFacts{});
    if (vm.firmware->kind == FirmwareOption::Kind::file)
        check_readable_file("--firmware", vm.firmware->file);
    const auto firmware = firmware_of(prepared, definition);
    if (vm.kernel) check_readable_file("--kernel", *vm.kernel);
    if (vm.initrd) check_readable_file("--initrd", *vm.initrd);
    for (auto& volume : vm.volumes) volume = resolve_volume(volume);
    if (vm.qemu_user) prepared.qemu_account = as_account(*vm.qemu_user, host.privileged);
    if (!options.dry_run) {
        if (options.timings_file) check_writable("--timings", *options.timings_file);
        if (options.result_file) check_writable("--result", *options.result_file);
    }
    const auto id = options.name ? random_id() : free_id(vm, prepared.directories);
    const auto name = options.name.value_or(id_name(vm, id));
    prepared.id = id;
    if (prepared.snapshot) {
        open_disks_of_snapshot(prepared);
    } else {
        if (image == ImageIs::here) open_disk(prepared, definition);
        image_lock.reset();
        open_drives(prepared);
        note_others(firmware, prepared);
    }
    if (!options.dry_run) open_firmware(firmware, prepared);
    if (!options.dry_run) bind_ports(prepared);
    if (!created) hold(name, prepared);
    if (vm.group && !options.dry_run) prepared.seat.emplace(prepared.directories, *vm.group, name);
    VmPlan network;
    const auto uplink = choose_uplink(vm.uplink, host.privileged);
    if (const auto spec = network_spec(vm, name, id, uplink))
        plan_network(*spec, prepared, network);
    const bool bridge = vm.net_or_default().mode == NetOption::Mode::bridge;
    const bool vhost = (network.network || bridge) && !netns::open_vhost(1).empty();
    const auto facts = prepared.image ? std::optional{prepared.image->facts} : std::nullopt;
    prepared.plan = make_vm_plan(vm, accel, name, facts, writes_of(prepared), network.network,
                                 network.guest, vhost);
    if (firmware) add_firmware(*firmware, prepared.plan);
    if (bridge) plan_port(name, vhost, prepared);
    for (std::size_t i = 0; i < vm.drives.size(); ++i)
        prepared.plan.qemu.drives.push_back(
            drive_plan(vm.drives[i], prepared.drives[i].facts.format));
    if (prepared.snapshot)
        take_machine(prepared);
    else
        add_seed(prepared, id);
    prepared.why_not_kvm = accel.why_not_kvm;
    return prepared;
}

void pull_image(const images::CatalogueEntry& entry, const VmOptions& vm,
                const Directories& directories, bool quiet) {
    if (!quiet) say(fmt::format("qvm: no image '{}' here: pulling it", vm.image->string()));
    (void)pull(ImageStore{directories.images()}, {.entry = entry, .quiet = quiet});
}

/// Pulls the image that a run means and that is not here. What can be refused without it is refused
/// first.
void pull_missing(const RunOptions& options) {
    if (options.dry_run || options.persist) return;
    const auto directories = find_directories();
    const auto missing = missing_image(options.vm, directories);
    if (!missing) return;
    if (options.warm != RunOptions::Warm::off) (void)warm_machine(options);
    auto quiet = options;
    quiet.verbosity.quiet = true;  // what is said is said once
    (void)prepare(quiet, false, std::nullopt, ImageIs::to_come);
    pull_image(*missing, options.vm, directories, options.verbosity.quiet);
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

/// Who is to blame.
json::value failed_by(const RunResult& result) {
    if (result.exit_status == status::ok) return {};
    if (result.of_command) return "command";
    switch (result.exit_status) {
        case status::guest_died:
            return "guest";
        case status::timed_out:
            return "timeout";
        case status::failed:
            return "qvm";
        default:
            return "signal";
    }
}

/// For --result: whether it was written, else errno says why not.
bool write_result(const RunOptions& options, const RunResult& result, const Timings& timings) {
    if (!options.result_file || options.dry_run) return true;
    const json::object object{{"exit_status", result.exit_status},
                              {"failed", failed_by(result)},
                              {"message", result.message},
                              {"phases", timings.phases()},
                              {"vm", result.vm}};
    std::ofstream file{*options.result_file, std::ios::trunc};
    file << pretty(object) << '\n' << std::flush;
    return static_cast<bool>(file);
}

/// The exit status.
int finish(const RunOptions& options, const RunResult& result, const Timings& timings) {
    if (!write_result(options, result, timings))
        throw Failure(fmt::format("--result '{}': {}", options.result_file->string(),
                                  std::generic_category().message(errno)));
    return result.exit_status;
}

void tell_of_tcg(const PreparedRun& prepared) {
    if (prepared.why_not_kvm.empty()) return;
    warn(prepared.options, fmt::format("no KVM here ({}): QEMU's TCG runs the guest, much slower",
                                       prepared.why_not_kvm));
}

/// Where this process lacks the privilege for what the VM needs.
void gain_privilege(PreparedRun& prepared, const Report& debug) {
    prepared.confines = true;
    if (prepared.privileged) return;
    const bool joins = prepared.seat && prepared.seat->joined();
    try {
        enter_user_namespace(joins ? prepared.seat->space() : -1, debug);
    } catch (const Failure& failure) {
        if (prepared.plan.network || !prepared.plan.volumes.empty()) throw;
        prepared.confines = false;
        debug(fmt::format("QEMU sees the host's files: {}", failure.what()));
    }
}

/// Until the VM's end.
RunResult mind(PreparedRun prepared, Timings& timings, const Reports& said) {
    gain_privilege(prepared, said.debug);
    tell_of_tcg(prepared);  // late, so that an error stands alone
    auto result = supervise(std::move(prepared), timings, said);
    timings.add("total", timings.exec(), Clock::now());
    if (!result.message.empty()) say("qvm: " + result.message);
    if (!result.last_words.empty()) say("qvm: the console's last lines:");
    for (const auto& line : result.last_words) say("    " + line);
    return result;
}

RunResult run_vm(const RunOptions& options, PreparedRun prepared, Timings& timings,
                 Background& background) {
    if (options.dry_run) {
        tell_of_tcg(prepared);
        print(describe(prepared.plan));
        return {};
    }
    const auto said = reports(options, prepared.plan.name, timings, background);
    auto result = mind(std::move(prepared), timings, said);
    if (options.timings) write_timings(options, timings);
    return result;
}

/// Begins with the machine that an earlier run has saved; without one it is booted first.
RunResult run_warm(const RunOptions& options, Timings& timings, Background& background) {
    const auto boot = [&](const RunOptions& boot_options, const std::function<void()>& ready) {
        Background stays;
        auto prepared = prepare(boot_options, false);
        auto said = reports(boot_options, prepared.plan.name, timings, stays);
        said.running = ready;
        return mind(std::move(prepared), timings, said).exit_status;
    };
    auto start = warm_start(options, boot);
    if (!start.snapshot) return {.exit_status = start.exit_status};
    auto prepared = prepare(start.options, false, std::move(start.snapshot));
    return run_vm(options, std::move(prepared), timings, background);
}

int run_audited(const RunOptions& options, Timings& timings) {
    Audit audit{find_directories(), options};
    RunResult result;
    try {
        Background stays;
        pull_missing(options);
        auto prepared = prepare(options, false);
        audit.expect(prepared.plan);
        result = run_vm(options, std::move(prepared), timings, stays);
    } catch (const std::exception& failure) {
        result.message = failure.what();
        result.exit_status = say_failure();
    }
    const auto differences = audit.differences();
    if (!differences.empty()) {
        result.message = "--audit: the host is not as it was";
        result.exit_status = status::failed;
        result.of_command = false;
        say(fmt::format("qvm: {}:", result.message));
        for (const auto& line : differences) say(line);
    }
    return finish(options, result, timings);
}

int run(const RunOptions& options, bool created, Timings& timings) {
    // A dry run makes nothing.
    if (options.audit && !options.dry_run) return run_audited(options, timings);
    Background background;
    // Who may want to leave the VM behind needs a process to leave.
    const bool console = !options.dry_run && !options.command && RawTerminal::available();
    if (console || (options.detach && !options.dry_run))
        if (const auto status = background.fork()) return *status;
    RunResult result;
    try {
        pull_missing(options);
        result = options.warm == RunOptions::Warm::off
                     ? run_vm(options, prepare(options, created), timings, background)
                     : run_warm(options, timings, background);
    } catch (const std::exception& failure) {
        result.exit_status = status::failed;
        result.message = failure.what();
        (void)write_result(options, result, timings);  // the first error is the one that is told
        throw;
    }
    return finish(options, result, timings);
}

/// The definition of a VM with these options, which are checked.
Definition define(const std::optional<std::string>& name, VmOptions vm,
                  const Directories& directories, ImageIs image) {
    settle_machine(vm, host_architecture());
    check_host(vm, read_host_facts(), true);
    if (vm.firmware->kind == FirmwareOption::Kind::file)
        check_readable_file("--firmware", vm.firmware->file);
    if (vm.kernel) check_readable_file("--kernel", *vm.kernel);
    if (vm.initrd) check_readable_file("--initrd", *vm.initrd);
    for (const auto& file : vm.ssh_keys) (void)read_public_keys(file);
    if (vm.user_data) (void)read_user_data(*vm.user_data);
    for (const auto& drive : vm.drives) (void)open_drive(drive);
    for (const auto& volume : vm.volumes) (void)resolve_volume(volume);
    if (vm.qemu_user) (void)as_account(*vm.qemu_user, has_capabilities());
    Definition definition;
    definition.firmware = choose_firmware(vm);
    definition.name = name ? *name : id_name(vm, free_id(vm, directories));
    definition.created = timestamp();
    if (vm.image && image == ImageIs::here) {
        const auto opened = open_image(vm, false);
        definition.virtual_size = opened.facts.virtual_size;
        definition.image_modified = opened.known.front().modified;
    }
    make_absolute(vm);
    definition.vm = std::move(vm);
    return definition;
}

/// A name that no other VM begins with meanwhile: a throw-away one may have it just now.
struct Reservation {
    BlockedSignals blocked;  ///< nothing is left half made by one
    VmDirectory directory;

    Reservation(const std::filesystem::path& run, const std::string& name) : directory(run, name) {}
};

}  // namespace

int run(const RunOptions& options, Timings& timings) {
    auto absolute = options;
    // Written when the directory may be another.
    for (auto* file : {&absolute.timings_file, &absolute.result_file})
        if (*file) *file = std::filesystem::absolute(**file);
    return run(absolute, false, timings);
}

int start(const StartOptions& options, Timings& timings) {
    RunOptions known;
    known.name = options.name;
    known.detach = true;
    known.wait_for = options.wait_for;
    known.boot_timeout = options.boot_timeout;
    known.verbosity = options.verbosity;
    return run(known, true, timings);
}

int create(const CreateOptions& options) {
    const auto directories = find_directories();
    auto vm = options.vm;
    if (const auto missing = missing_image(vm, directories)) {
        const auto name = define(options.name, vm, directories, ImageIs::to_come).name;
        DefinitionStore{directories}.check_free(name);
        (void)Reservation{directories.run, name};
        pull_image(*missing, vm, directories, false);
    }
    const auto image_lock = find_image(vm, directories, true);
    const auto definition = define(options.name, std::move(vm), directories, ImageIs::here);
    const Reservation reserved{directories.run, definition.name};
    DefinitionStore{directories}.add(definition);
    announce(directories, "created", definition.name);
    print(definition.name + "\n");
    return status::ok;
}

}  // namespace qvm
