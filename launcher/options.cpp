#include "launcher/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>

#include "images/catalogue.h"
#include "images/error.h"
#include "images/url.h"
#include "launcher/definition.h"
#include "launcher/failure.h"

namespace qvm {

namespace {

constexpr const char* vm_footer =
    "--net MODE is isolated, nat (the default), flat, user or none; with the first three, keys\n"
    "may follow: subnet=CIDR,address=IP,mac=MAC,mtu=BYTES,queues=N, and for nat pool=CIDR.\n"
    "VMs of one --group share a network and resolve each other by name.\n";

constexpr const char* run_footer =
    "After '--' stands a command for the guest, which needs qemu-guest-agent: its output is ours,\n"
    "and its end the VM's. Else this is the console; on a terminal, Ctrl-] leaves it.\n"
    "\n"
    "Exit status: the command's, 126 where it cannot be run, 127 where there is none; else 0 the\n"
    "guest powered off; 123 it panicked, or QEMU died; 124 a time-out; 125 qvm failed, or --audit\n"
    "found a difference; 128+N signal N ended qvm.\n"
    "\n"
    "  qvm run --net isolated disk.qcow2\n"
    "  qvm run demo.qcow2 -- uname -a\n"
    "  printf 'ip addr\\npoweroff\\n' | qvm run demo.qcow2\n"
    "  qvm run -d --group lab --name web -p 8080:80 web.qcow2\n";

unsigned parse_up_to(std::string_view text, unsigned most) {
    unsigned value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || rest != text.data() + text.size() || value < 1 || value > most)
        throw Failure(fmt::format("must be a number from 1 to {}", most));
    return value;
}

unsigned parse_cpus(std::string_view text) {
    return parse_up_to(text, most_cpus);
}

unsigned parse_count(std::string_view text) {
    constexpr unsigned most = 1000;
    return parse_up_to(text, most);
}

RunOptions::Warm parse_warm(std::string_view text) {
    if (text == "use") return RunOptions::Warm::on;
    if (text == "refresh") return RunOptions::Warm::refresh;
    throw Failure("is not refresh");
}

images::Checksum parse_checksum(const std::string& text) {
    try {
        return images::parse_checksum(text);
    } catch (const images::Error& error) {
        throw Failure(error.what());
    }
}

CompletionOptions::Shell parse_shell(std::string_view text) {
    using Shell = CompletionOptions::Shell;
    if (text == "bash") return Shell::bash;
    if (text == "zsh") return Shell::zsh;
    if (text == "fish") return Shell::fish;
    throw Failure("is not a shell that is known", "shells are bash, zsh and fish");
}

/// Of a name that is looked up: what cannot be one is no VM's.
std::vector<std::string> parse_names(const std::vector<std::string>& texts) {
    std::vector<std::string> names;
    for (const auto& text : texts) names.push_back(value_of("VM", text, parse_name));
    return names;
}

/// Options whose value needs more than CLI11 does: their texts, read when the parse is done.
struct VmTexts {
    std::string image, disk_size, memory = "1G", cpus = "1", net, group, uplink = "auto",
                                  accel = "auto", arch, firmware;
    std::vector<std::string> publish, drives, volumes;
};

void add_vm_options(CLI::App& app, VmOptions& options, VmTexts& texts) {
    app.add_option(
        "IMAGE", texts.image,
        "Disk image, qcow2 or raw, by its path or its name, which is pulled if need be;\n"
        "it is not written to. Or snapshot:NAME");
    app.add_option("-m,--memory", texts.memory, "Memory: 512M, 2G; MiB without a unit [1G]")
        ->type_name("SIZE");
    app.add_option("--disk-size", texts.disk_size,
                   "Size of the disk, if larger than IMAGE's: 20G; MiB without a unit")
        ->type_name("SIZE");
    app.add_option("--user-data,--cloud-init", options.user_data,
                   "User data for the guest's cloud-init")
        ->type_name("FILE");
    app.add_option("--ssh-key", options.ssh_keys,
                   "Public keys that may log in, beside qvm's own (repeatable)")
        ->allow_extra_args(false)
        ->type_name("FILE");
    app.add_option("-v,--volume,--mount", texts.volumes,
                   "A directory of the host in the guest: HOSTDIR:GUESTDIR[:ro] (repeatable)")
        ->allow_extra_args(false)
        ->type_name("VOLUME");
    app.add_option("--drive", texts.drives,
                   "Another disk, which is written to: FILE[:ro][:format=raw|qcow2] (repeatable)")
        ->allow_extra_args(false)
        ->type_name("FILE");
    app.add_option("--cpus,--vcpus", texts.cpus, "Number of CPUs [1]")->type_name("N");
    app.add_option("--net,--network", texts.net, "Network: MODE[,KEY=VALUE...] [nat]")
        ->type_name("MODE");
    app.add_option("--group", texts.group, "Share the network of this group")->type_name("GROUP");
    app.add_option("--uplink", texts.uplink,
                   "How nat reaches the outside: auto, veth or pasta [auto]")
        ->type_name("UPLINK");
    app.add_flag("--port-isolation", options.port_isolation,
                 "Keep the guests of the group from each other");
    app.add_flag("--allow-host", options.allow_host,
                 "Let the guest reach the host itself, by the name host.qvm");
    app.add_option("-p,--publish", texts.publish,
                   "Forward a host port: [HOSTIP:]HOSTPORT:GUESTPORT[/udp]; HOSTIP [127.0.0.1],\n"
                   "HOSTPORT 0: any (repeatable)")
        ->allow_extra_args(false)
        ->type_name("PORTS");
    app.add_option("--kernel", options.kernel, "Boot this kernel instead of the disk's")
        ->type_name("FILE");
    app.add_option("--initrd", options.initrd, "Its initial RAM disk")->type_name("FILE");
    app.add_option("--append", options.append, "Its command line");
    app.add_option("--arch", texts.arch, "The guest's architecture: x86_64 or aarch64 [the host's]")
        ->type_name("ARCH");
    app.add_option("--firmware", texts.firmware,
                   "What boots the guest: bios, uefi or a file [bios; of aarch64 uefi]")
        ->type_name("FIRMWARE");
    app.add_flag("--secure-boot", options.secure_boot,
                 "UEFI that boots only what Microsoft's keys have signed");
    app.add_flag("--tpm", options.tpm, "A TPM 2.0, by swtpm");
    app.add_flag("--trust-backing", options.trust_backing,
                 "Let IMAGE name other files as its backing");
    app.add_option("--accel", texts.accel, "auto, kvm or tcg [auto]")->type_name("ACCEL");
    app.add_option("--qemu-user", options.qemu_user,
                   "Run QEMU as this account, with the host's files and network before it")
        ->type_name("USER");
    app.add_option("--qemu-arg", options.qemu_args, "Pass ARG on to QEMU (repeatable)")
        ->allow_extra_args(false)
        ->type_name("ARG");
}

/// A name, or the path of a directory.
std::string parse_snapshot(const std::string& text) {
    if (text.find('/') != std::string::npos) return text;
    return value_of("snapshot", text, parse_name);
}

/// A machine that was saved is what it was.
void check_clone(const CLI::App& app) {
    for (const char* option :
         {"--memory", "--disk-size", "--user-data", "--ssh-key", "--drive", "--cpus", "--kernel",
          "--initrd", "--append", "--arch", "--firmware", "--secure-boot", "--tpm",
          "--trust-backing", "--accel", "--qemu-arg"})
        if (app.count(option) > 0)
            throw Failure(fmt::format("{}: the machine of a snapshot is as it was saved", option));
}

void check_vm(const std::string& command, const VmOptions& vm) {
    if (!vm.image && !vm.kernel && !vm.snapshot)
        throw Failure(command + ": IMAGE is missing", "qvm " + command + " --help");
    if (vm.disk_mib && !vm.image) throw Failure("--disk-size: there is no IMAGE");
    if (vm.initrd && !vm.kernel) throw Failure("--initrd: goes with --kernel only");
    if (vm.append && !vm.kernel) throw Failure("--append: goes with --kernel only");
    if (vm.secure_boot && vm.firmware && vm.firmware->kind != FirmwareOption::Kind::uefi)
        throw Failure(fmt::format("--secure-boot: is UEFI's, and --firmware is '{}'",
                                  to_string(*vm.firmware)));
    check_network(vm);
}

void finish_vm(const CLI::App& app, VmOptions& options, const VmTexts& texts) {
    constexpr std::string_view snapshot = "snapshot:";
    if (texts.image.starts_with(snapshot))
        options.snapshot = parse_snapshot(texts.image.substr(snapshot.size()));
    else if (!texts.image.empty())
        options.image = texts.image;
    if (!texts.disk_size.empty())
        options.disk_mib = value_of("--disk-size", texts.disk_size, parse_memory);
    options.memory_mib = value_of("--memory", texts.memory, parse_memory);
    options.cpus = value_of("--cpus", texts.cpus, parse_cpus);
    if (app.count("--net") > 0) options.net = value_of("--net", texts.net, parse_net);
    if (app.count("--group") > 0) options.group = value_of("--group", texts.group, parse_name);
    options.uplink = value_of("--uplink", texts.uplink, parse_uplink);
    options.accel = value_of("--accel", texts.accel, parse_accel);
    if (app.count("--arch") > 0) options.arch = value_of("--arch", texts.arch, parse_architecture);
    if (app.count("--firmware") > 0)
        options.firmware = value_of("--firmware", texts.firmware, parse_firmware);
    for (const auto& text : texts.publish)
        options.publish.push_back(value_of("--publish", text, parse_publish));
    for (const auto& text : texts.drives)
        options.drives.push_back(value_of("--drive", text, parse_drive));
    for (const auto& text : texts.volumes)
        options.volumes.push_back(value_of("--volume", text, parse_volume));
    if (options.snapshot) check_clone(app);
    check_vm(app.get_name(), options);
}

void add_verbosity(CLI::App& app, Verbosity& verbosity) {
    app.add_flag("-q,--quiet", verbosity.quiet, "No notes on stderr, only errors");
    app.add_flag("-D,--debug", verbosity.debug, "Say on stderr what is done");
}

/// One subcommand: how it is declared, and what it means once it was given.
struct Subcommand {
    CLI::App* app;
    std::function<Command(CLI::App*)> finish;  ///< given its own app
};

/// "NAME:PATH", or a path; one with a slash before its first colon is a path.
CopyPlace parse_place(const std::string& text) {
    const auto colon = text.find(':');
    if (colon == std::string::npos || text.find('/') < colon) return {std::nullopt, text};
    return {value_of("VM", text.substr(0, colon), parse_name), text.substr(colon + 1)};
}

/// As a shell has names.
void check_variable(const std::string& text) {
    const std::string_view name{text.data(), std::min(text.find('='), text.size())};
    const bool good = !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) == 0 &&
                      std::all_of(name.begin(), name.end(), [](unsigned char letter) {
                          return letter == '_' || (letter < 0x80 && std::isalnum(letter) != 0);
                      });
    if (!good) throw Failure(fmt::format("--env '{}': is not NAME[=VALUE]", text));
}

/// As useradd(8) has them, and none that a shell on the way could take for something else.
bool is_user(std::string_view text) {
    return !text.empty() && text.front() != '-' &&
           std::all_of(text.begin(), text.end(), [](unsigned char letter) {
               return letter < 0x80 && (std::isalnum(letter) != 0 || letter == '_' ||
                                        letter == '-' || letter == '.' || letter == '@');
           });
}

class Parser {
  public:
    Parser() {
        app_.require_subcommand(1);
        app_.set_help_all_flag();
        app_.add_flag("--version", version_flag_, "Print qvm's version");
        add_run();
        add_create();
        add_start();
        add_remove();
        add_verbs();
        add_ps();
        add_inspect();
        add_logs();
        add_console();
        add_exec();
        add_ssh();
        add_copy();
        add_events();
        add_qmp();
        add_net();
        add_snapshot();
        add_fork();
        add_image();
        auto& doctor = add("doctor", "Say what this host can do, and the remedy where it cannot",
                           [this](auto*) { return doctor_; });
        doctor.add_flag("--json", doctor_.json, "As JSON");
        add("gc", "Remove what dead VMs left behind", [](auto*) { return GcOptions{}; });
        add_completion();
        add("version", "Print qvm's version", [](auto*) { return version(); });
    }

    Command operator()(int argc, const char* const* argv) {
        // What follows "--" is somebody else's command line.
        const auto* const* end = std::find(argv, argv + argc, std::string_view{"--"});
        command_.assign(end == argv + argc ? end : end + 1, argv + argc);
        try {
            app_.parse(static_cast<int>(end - argv), argv);
        } catch (const CLI::CallForHelp&) {
            return PrintText{help_of(app_)};
        } catch (const CLI::ParseError& error) {
            if (version_flag_) return version();
            const bool words_too_many = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
            throw Failure(error.what(), words_too_many && app_.got_subcommand("run")
                                            ? "qvm run [OPTIONS] IMAGE -- COMMAND"
                                            : path_of(app_) + " --help");
        }
        if (version_flag_) return version();
        if (end != argv + argc && std::none_of(with_command_.begin(), with_command_.end(),
                                               [](auto* app) { return app->parsed(); }))
            throw Failure(fmt::format("{} takes no command after '--'", path_of(app_)),
                          path_of(app_) + " --help");
        for (const auto& subcommand : subcommands_)
            if (subcommand.app->parsed()) return subcommand.finish(subcommand.app);
        throw Failure("no command was given", "qvm --help");
    }

    [[nodiscard]] CommandShape shape() const { return shape_of(app_, {}); }

  private:
    static Command version() { return PrintText{"qvm " QVM_VERSION "\n"}; }

    CLI::App& add(const std::string& name, const std::string& what,
                  std::function<Command(CLI::App*)> finish, CLI::App* parent = nullptr) {
        auto* app = (parent != nullptr ? parent : &app_)->add_subcommand(name, what);
        subcommands_.push_back({app, std::move(finish)});
        return *app;
    }

    void add_run() {
        auto& added = add(
            "run", "Boot IMAGE in a throw-away VM, console in this terminal", [this](auto* app) {
                finish_vm(*app, run_.vm, texts_);
                if (app->count("--warm") > 0) run_.warm = value_of("--warm", warm_, parse_warm);
                check_warm();
                if (run_.persist && run_.vm.snapshot)
                    throw Failure("--persist: a snapshot is not written to");
                if (run_.persist && !run_.vm.image)
                    throw Failure("--persist: there is no IMAGE to write to");
                if (run_.persist && run_.vm.disk_mib)
                    throw Failure("--disk-size: is an overlay's, and --persist has none");
                if (run_.audit && run_.detach)
                    throw Failure("--audit: goes with a run in the foreground only");
                finish_command(*app);
                if (app->count("--name") > 0) run_.name = value_of("--name", name_, parse_name);
                if (app->count("--timeout") > 0)
                    run_.timeout = value_of("--timeout", timeout_, parse_duration);
                if (app->count("--boot-timeout") > 0)
                    run_.boot_timeout = value_of("--boot-timeout", boot_timeout_, parse_duration);
                run_.wait_for = wait_for();
                run_.timings = app->count("--timings") > 0;
                if (run_.timings && timings_ != "-") run_.timings_file = timings_;
                return run_;
            });
        add_vm_options(added, run_.vm, texts_);
        added.add_option("-n,--name", name_, "Name of the VM [IMAGE's and a number]")
            ->type_name("NAME");
        added.add_flag("-d,--detach", run_.detach, "Print the name once the guest runs, and leave");
        added.add_flag("--persist", run_.persist, "Write to IMAGE itself");
        added.add_option("--timeout", timeout_, "End the VM after this long: 30s, 5m")
            ->type_name("TIME");
        add_wait_for(added);
        add_command_options(added, run_.interactive);
        added
            .add_flag(
                "--warm{use}", warm_,
                "Boot once, and begin all later runs of the same machine where it was ready;\n"
                "refresh: boot again")
            ->type_name("[=refresh]");
        added
            .add_option("--restore-hook", run_.restore_hook,
                        "A shell script that the guest of a snapshot runs before anything else")
            ->type_name("FILE");
        added.add_flag("--dry-run", run_.dry_run, "Print the network plan and QEMU's command line");
        added.add_flag("--audit", run_.audit,
                       "Compare the host before and after; exit status 125 if it differs");
        added
            .add_flag("--timings{-}", timings_,
                      "Time of each phase in ms, on stderr or as JSON in FILE")
            ->type_name("[=FILE]");
        added.add_option("--result", run_.result_file, "Write how it ended to FILE, as JSON")
            ->type_name("FILE");
        add_verbosity(added, run_.verbosity);
        with_command_.push_back(&added);
        added.footer(std::string{vm_footer} + run_footer);
    }

    void check_warm() const {
        const bool warm = run_.warm != RunOptions::Warm::off;
        if (warm && run_.vm.snapshot) throw Failure("--warm: a snapshot is warm already");
        if (warm && run_.persist) throw Failure("--warm: --persist writes to the image itself");
        if (warm && run_.dry_run) throw Failure("--warm: goes with no --dry-run");
        if (warm && run_.audit) throw Failure("--warm: what it keeps is what --audit would find");
        if (run_.restore_hook && !run_.vm.snapshot && !warm)
            throw Failure("--restore-hook: goes with snapshot:NAME or --warm only");
    }

    void add_wait_for(CLI::App& app) {
        app.add_option("--wait-for", wait_for_,
                       "The guest is ready when it has come so far: agent, ssh, cloud-init,\n"
                       "tcp:PORT, log:REGEX; in the boot's time, and before --detach leaves or\n"
                       "a command runs (repeatable)")
            ->allow_extra_args(false)
            ->type_name("STAGE");
        app.add_option("--boot-timeout", boot_timeout_,
                       "Time for the guest to be ready: until its agent answers, or what\n"
                       "--wait-for says; with that or a command [1m, 5m without KVM]")
            ->type_name("TIME");
    }

    [[nodiscard]] std::vector<WaitForOption> wait_for() const {
        std::vector<WaitForOption> stages;
        for (const auto& text : wait_for_)
            stages.push_back(value_of("--wait-for", text, parse_wait_for));
        return stages;
    }

    /// Only after "--": the options of `run` may stand behind IMAGE, too.
    void finish_command(const CLI::App& app) {
        if (!command_.empty()) {
            if (run_.detach)
                throw Failure("--detach: goes with no command",
                              "qvm run -d --name NAME IMAGE, and qvm exec NAME -- COMMAND");
            run_.command = guest_command_of(app);
            return;
        }
        for (const auto* option : {"--interactive", "--tty", "--env", "--user", "--workdir"})
            if (app.count(option) > 0)
                throw Failure(fmt::format("{}: goes with a command only", option),
                              "qvm run [OPTIONS] IMAGE -- COMMAND");
    }

    void add_create() {
        auto& added =
            add("create", "Define a VM with a disk of its own, to be started", [this](auto* app) {
                finish_vm(*app, create_.vm, texts_);
                if (create_.vm.snapshot)
                    throw Failure("create: a VM that stays begins with an IMAGE, not a snapshot");
                if (app->count("--name") > 0) create_.name = value_of("--name", name_, parse_name);
                return create_;
            });
        add_vm_options(added, create_.vm, texts_);
        added.add_option("-n,--name", name_, "Name of the VM [IMAGE's and a number]")
            ->type_name("NAME");
        added.footer(vm_footer);
    }

    void add_start() {
        auto& added = add("start", "Start a VM that was created", [this](auto* app) {
            start_.name = parse_names({name_}).front();
            start_.wait_for = wait_for();
            if (app->count("--boot-timeout") > 0)
                start_.boot_timeout = value_of("--boot-timeout", boot_timeout_, parse_duration);
            return start_;
        });
        added.add_option("NAME", name_, "The VM")->required();
        add_wait_for(added);
        add_verbosity(added, start_.verbosity);
    }

    void add_remove() {
        auto& added = add("rm", "Remove VMs that were created, with their disks", [this](auto*) {
            remove_.names = parse_names(names_);
            return remove_;
        });
        added.add_option("NAME", names_, "The VMs")->required();
        added.add_flag("-f,--force", remove_.force, "Kill those that run");
    }

    CLI::App& add_verb(const char* name, const char* what, VerbOptions::Verb verb) {
        auto& added = add(name, what, [this, verb](auto* app) {
            verb_.verb = verb;
            verb_.names = parse_names(names_);
            const bool given = app->get_option_no_throw("--timeout") && app->count("--timeout") > 0;
            if (given && timeout_ == "0")
                verb_.timeout = {};
            else if (given)
                verb_.timeout = value_of("--timeout", timeout_, parse_duration);
            return verb_;
        });
        added.add_option("NAME", names_, "The VMs")->required();
        return added;
    }

    void add_verbs() {
        using Verb = VerbOptions::Verb;
        const char* grace = "Time for the guest to power down: 30, 5m; 0: none [10]";
        add_verb("stop", "Ask guests to power down; end those that do not", Verb::stop)
            .add_option("-t,--timeout,--time", timeout_, grace)
            ->type_name("TIME");
        add_verb("kill", "End VMs at once", Verb::kill);
        add_verb("wait", "Wait for VMs' end and print their exit statuses", Verb::wait);
        add_verb("pause", "Stop VMs' CPUs", Verb::pause);
        add_verb("resume", "Let VMs' CPUs run again", Verb::resume);
        add_verb("restart", "Power guests down and boot them again", Verb::restart)
            .add_option("-t,--timeout,--time", timeout_, grace)
            ->type_name("TIME");
    }

    void add_ps() {
        auto& added = add("ps", "List VMs", [this](auto*) { return ps_; });
        added.add_flag("-a,--all", ps_.all, "Those that were created and do not run, too");
        added.add_flag("--json", ps_.json, "As JSON");
        added.add_flag("-q,--quiet", ps_.names, "Names only");
    }

    void add_inspect() {
        auto& added = add("inspect", "All about VMs, as JSON",
                          [this](auto*) { return InspectOptions{parse_names(names_)}; });
        added.add_option("NAME", names_, "The VMs")->required();
    }

    void add_logs() {
        auto& added = add("logs", "Print what a guest wrote to its console", [this](auto*) {
            logs_.name = parse_names({name_}).front();
            return logs_;
        });
        added.add_option("NAME", name_, "The VM")->required();
        added.add_flag("-f,--follow", logs_.follow, "Go on until the VM ends");
    }

    void add_console() {
        auto& added = add("console", "Attach this terminal to a guest's console",
                          [this](auto*) { return ConsoleOptions{parse_names({name_}).front()}; });
        added.add_option("NAME", name_, "The VM")->required();
        added.footer("Ctrl-] leaves. Several may watch; the first of them writes.\n");
    }

    /// Takes a command after its own words, with or without "--".
    void take_command(CLI::App& app, const char* example) {
        with_command_.push_back(&app);
        app.prefix_command();
        app.allow_extras();
        app.footer(example);
    }

    [[nodiscard]] std::vector<std::string> words_of(const CLI::App& app) const {
        auto words = app.remaining();
        words.insert(words.end(), command_.begin(), command_.end());
        return words;
    }

    std::vector<std::string> command_of(const CLI::App& app) {
        auto command = words_of(app);
        if (!command.empty()) return command;
        const auto path = path_of(app_);
        throw Failure(path.substr(path.find(' ') + 1) + ": COMMAND is missing", path + " --help");
    }

    /// Those of docker that say how a command runs.
    void add_command_options(CLI::App& app, bool& interactive) {
        app.add_flag("-i,--interactive", interactive, "The command's stdin is this one");
        app.add_option("-e,--env", guest_command_.environment,
                       "Set a variable for the command (repeatable)")
            ->allow_extra_args(false)
            ->type_name("NAME[=VALUE]");
        app.add_flag("-t,--tty", terminal_, "The command has a terminal");
        app.add_option("-u,--user", guest_command_.user, "Who runs the command [root]")
            ->type_name("NAME[:GROUP]");
        app.add_option("-w,--workdir", guest_command_.directory, "Where the command runs")
            ->type_name("DIR");
    }

    GuestCommand guest_command_of(const CLI::App& app) {
        guest_command_.argv = command_of(app);
        if (terminal_) guest_command_.terminal.emplace();
        for (const auto& variable : guest_command_.environment) check_variable(variable);
        return guest_command_;
    }

    void add_exec() {
        auto& added = add("exec", "Run a command in a guest", [this](auto* app) {
            exec_.name = parse_names({name_}).front();
            exec_.command = guest_command_of(*app);
            return exec_;
        });
        add_command_options(added, exec_.interactive);
        added.add_option("NAME", name_, "The VM")->required();
        take_command(added, "qvm exec NAME [--] COMMAND [ARG...]\n\n  qvm exec web -- uname -a\n");
    }

    void add_ssh() {
        auto& added = add("ssh", "Log in to a guest with OpenSSH", [this](auto* app) {
            const auto at = name_.rfind('@');
            if (at != std::string::npos) ssh_.user = name_.substr(0, at);
            if (!is_user(ssh_.user))
                throw Failure(fmt::format("ssh '{}': '{}' is no user's name", name_, ssh_.user));
            ssh_.name = parse_names({name_.substr(at == std::string::npos ? 0 : at + 1)}).front();
            ssh_.command = words_of(*app);
            return ssh_;
        });
        added.add_option("NAME", name_, "The VM, as NAME or USER@NAME; USER [root]")->required();
        added.add_flag("--proxy", ssh_.proxy,
                       "Hand a connection to the ssh that runs this: its ProxyCommand, with\n"
                       "ProxyUseFdpass");
        take_command(
            added,
            "qvm ssh [USER@]NAME [[--] COMMAND [ARG...]]\n\n"
            "The guest needs sshd, and cloud-init or qemu-guest-agent to get qvm's key.\n");
        auto& config = add("ssh-config", "Print ssh_config(5) for VMs that run",
                           [this](auto*) { return SshConfigOptions{parse_names(names_)}; });
        config.add_option("NAME", names_, "The VMs [all]");
        config.footer(
            "  qvm ssh-config >vms.conf\n  rsync -e 'ssh -F vms.conf' -a src/ web:src/\n");
    }

    void add_copy() {
        auto& added = add("cp", "Copy files to or from a guest", [this](auto*) {
            copy_.from = parse_place(source_);
            copy_.to = parse_place(target_);
            if (copy_.from.vm.has_value() == copy_.to.vm.has_value())
                throw Failure(
                    "cp: one of SRC and DST is a VM's, as NAME:PATH, and the other is not",
                    "qvm cp --help");
            return copy_;
        });
        added.add_option("SRC", source_, "A file or directory")->required();
        added.add_option("DST", target_, "Where to; a directory that is there gets SRC into it")
            ->required();
        added.add_flag("-q,--quiet", copy_.quiet, "No progress on stderr");
        added.footer("  qvm cp app.tar web:/srv/\n  qvm cp web:/var/log logs\n");
    }

    void add_events() {
        auto& added = add("events", "Print what happens to VMs, as it happens",
                          [this](auto*) { return events_; });
        added.add_flag("--json", events_.json, "One JSON object a line");
    }

    void add_qmp() {
        auto& added = add("qmp", "Execute a QMP command and print what it returns", [this](auto*) {
            qmp_.name = parse_names({name_}).front();
            if (qmp_.command.empty()) throw Failure("qmp: COMMAND is empty");
            return qmp_;
        });
        added.add_option("NAME", name_, "The VM")->required();
        added.add_option("COMMAND", qmp_.command, "QEMU's, or one of qvm's own: qvm-*")->required();
        added.add_option("JSON", qmp_.arguments, "Its arguments: '{\"device\": \"net0\"}'");
        added.footer("  qvm qmp web query-status\n");
    }

    void add_net() {
        auto* net = app_.add_subcommand("net", "Networks of VMs and groups");
        net->require_subcommand(1);
        auto& ls = add(
            "ls", "List networks", [this](auto*) { return net_ls_; }, net);
        ls.add_flag("--json", net_ls_.json, "As JSON");
        auto& inspect = add(
            "inspect", "All about one network, as JSON",
            [this](auto*) { return NetInspectOptions{parse_names({name_}).front()}; }, net);
        inspect.add_option("NAME", name_, "A group, or a VM that is in none")->required();
        auto& exec = add(
            "exec", "Run a command of the host inside a network's namespace",
            [this](auto* app) {
                return NetExecOptions{parse_names({name_}).front(), command_of(*app)};
            },
            net);
        exec.add_option("NAME", name_, "A VM or a group")->required();
        take_command(exec,
                     "qvm net exec NAME [--] COMMAND [ARG...]\n\n  qvm net exec web -- ping -c 1 "
                     "192.168.26.10\n");
    }

    void add_image() {
        auto* image = app_.add_subcommand("image", "Disk images");
        image->require_subcommand(1);
        add_image_pull(image);
        add_image_import(image);
        auto& ls = add(
            "ls", "List images", [this](auto*) { return image_ls_; }, image);
        ls.add_flag("--catalogue", image_ls_.catalogue, "Those that can be pulled by name instead");
        ls.add_flag("--json", image_ls_.json, "As JSON");
        ls.add_flag("-q,--quiet", image_ls_.names, "Names only");
        auto& inspect = add(
            "inspect", "All about images, as JSON",
            [this](auto*) { return ImageInspectOptions{image_names()}; }, image);
        inspect.add_option("NAME", names_, "The images, or their digests (sha256:...)")->required();
        auto& tag = add(
            "tag", "Give an image another name",
            [this](auto*) {
                return ImageTagOptions{image_name(), value_of("image", target_, parse_image_name)};
            },
            image);
        tag.add_option("NAME", name_, "The image, or its digest (sha256:...)")->required();
        tag.add_option("NEW-NAME", target_, "Its other name, which another image loses")
            ->required();
        auto& to_file = add(
            "export", "Copy an image into a file",
            [this](auto*) {
                return ImageExportOptions{image_name(), target_};
            },
            image);
        to_file.add_option("NAME", name_, "The image, or its digest (sha256:...)")->required();
        to_file.add_option("FILE", target_, "Where to")->required();
        auto& rm = add(
            "rm", "Remove images",
            [this](auto*) {
                image_rm_.names = image_names();
                return image_rm_;
            },
            image);
        rm.add_option("NAME", names_, "The images, or their digests (sha256:...)")->required();
        rm.add_flag("-f,--force", image_rm_.force,
                    "Also those of VMs that run, which keep them to their end, and by a digest all "
                    "names");
        auto& prune = add(
            "prune", "Remove images without a name, and downloads that nobody is at work on",
            [this](auto* app) {
                ImagePruneOptions options;
                if (app->count("--older-than") > 0)
                    options.older_than = value_of("--older-than", timeout_, parse_duration);
                return options;
            },
            image);
        prune
            .add_option("--older-than", timeout_,
                        "And images that were not used for so long: 12h, 30d; none that a VM\n"
                        "or a snapshot is built on")
            ->type_name("TIME");
        auto& verify = add(
            "verify", "Look whether images are what they were",
            [this](auto*) { return ImageVerifyOptions{image_names()}; }, image);
        verify.add_option("NAME", names_, "The images, or their digests (sha256:...) [all]");
        auto& demo = add(
            "demo", "Build the demo guest's disk from Debian's packages",
            [this](auto* app) {
                demo_.arch = arch_of(app);
                return demo_;
            },
            image);
        demo_.path = "demo.qcow2";
        demo.add_option("PATH", demo_.path, "Where to put it [demo.qcow2]");
        add_arch(demo);
        demo.add_flag("-q,--quiet", demo_.quiet, "No progress on stderr");
        add_image_build_debian(image);
    }

    void add_image_pull(CLI::App* image) {
        auto& added = add(
            "pull", "Download an image",
            [this](auto* app) {
                if (!images::is_url(name_)) {
                    if (name_.find("://") != name_.npos)
                        throw Failure("image '" + images::without_secrets(name_) +
                                      "': is no URL of http, https or file");
                    (void)value_of("image", name_, parse_image_name);
                }
                pull_.image = name_;
                if (app->count("NEW-NAME") > 0)
                    pull_.name = value_of("image", target_, parse_image_name);
                pull_.arch = arch_of(app);
                if (app->count("--checksum") > 0)
                    pull_.checksum = value_of("--checksum", source_, parse_checksum);
                return pull_;
            },
            image);
        added.add_option("IMAGE", name_, "Its name in the catalogue, or a URL")->required();
        added.add_option("NEW-NAME", target_,
                         "What it is called here [as in the catalogue, or as its file]");
        added.add_option("--checksum", source_, "What it has to be: sha256:HEX or sha512:HEX")
            ->type_name("CHECKSUM");
        add_arch(added);
        added.add_flag("-q,--quiet", pull_.quiet, "No progress on stderr");
        added.footer("  qvm image pull debian:12\n  qvm run debian:12\n");
    }

    void add_image_import(CLI::App* image) {
        auto& added = add(
            "import", "Copy a disk image into the store",
            [this](auto* app) {
                auto& options = image_import_;
                options.file = source_;
                options.name = app->count("NEW-NAME") > 0
                                   ? value_of("image", target_, parse_image_name)
                                   : images::image_name_of(options.file.filename().string());
                options.arch = arch_of(app);
                return options;
            },
            image);
        added.add_option("PATH", source_, "The image")->required();
        added.add_option("NEW-NAME", target_, "What it is called [as its file]");
        add_arch(added);
        added.add_flag("--trust-backing", image_import_.trust_backing,
                       "Let it name other files as its backing file, which become part of it");
    }

    void add_arch(CLI::App& app) {
        app.add_option("--arch", texts_.arch, "Its architecture: x86_64 or aarch64 [the host's]")
            ->type_name("ARCH");
    }

    [[nodiscard]] std::optional<Architecture> arch_of(CLI::App* app) const {
        if (app->count("--arch") == 0) return std::nullopt;
        return value_of("--arch", texts_.arch, parse_architecture);
    }

    [[nodiscard]] std::string image_name() const {
        return value_of("image", name_, parse_image_reference);
    }

    [[nodiscard]] std::vector<std::string> image_names() const {
        std::vector<std::string> names;
        for (const auto& text : names_)
            names.push_back(value_of("image", text, parse_image_reference));
        return names;
    }

    void add_image_build_debian(CLI::App* image) {
        auto& debian = add(
            "build-debian", "Build a Debian guest's disk from the host's apt sources",
            [this](auto*) {
                for (const auto& text : packages_) {
                    const auto more = value_of("--packages", text, parse_packages);
                    debian_.packages.insert(debian_.packages.end(), more.begin(), more.end());
                }
                if (!debian_.suite.empty()) value_of("--suite", debian_.suite, parse_suite);
                return debian_;
            },
            image);
        debian_.path = "debian.qcow2";
        debian.add_option("PATH", debian_.path, "Where to put it [debian.qcow2]");
        debian
            .add_option("--packages", packages_,
                        "Debian packages besides those of the guest itself, a comma between two "
                        "(repeatable)")
            ->allow_extra_args(false)
            ->type_name("NAMES");
        debian.add_option("--suite", debian_.suite, "Debian's release [the host's]")
            ->type_name("NAME");
        debian.add_flag("-q,--quiet", debian_.quiet, "No progress on stderr");
        debian.footer("  qvm image build-debian --packages gcc,make ci.qcow2\n");
    }

    void add_snapshot() {
        auto* snapshot = app_.add_subcommand("snapshot", "Machines saved while they ran");
        snapshot->require_subcommand(1);
        auto& create = add(
            "create", "Save a VM that runs, and goes on running",
            [this](auto*) {
                save_.vm = parse_names({name_}).front();
                save_.snapshot = value_of("snapshot", snapshot_, parse_name);
                return save_;
            },
            snapshot);
        create.add_option("NAME", name_, "The VM")->required();
        create.add_option("SNAPSHOT", snapshot_, "What it is called")->required();
        create.add_flag("-q,--quiet", save_.quiet, "No notes on stderr, only errors");
        create.footer("  qvm snapshot create web ready\n  qvm run snapshot:ready\n");
        auto& ls = add(
            "ls", "List snapshots", [this](auto*) { return snapshot_ls_; }, snapshot);
        ls.add_flag("--json", snapshot_ls_.json, "As JSON");
        ls.add_flag("-q,--quiet", snapshot_ls_.names, "Names only");
        auto& inspect = add(
            "inspect", "All about snapshots, as JSON",
            [this](auto*) { return SnapshotInspectOptions{snapshot_names()}; }, snapshot);
        inspect.add_option("SNAPSHOT", names_, "The snapshots")->required();
        auto& to_file = add(
            "export", "Write a snapshot into one file, for another host",
            [this](auto*) {
                export_.snapshot = value_of("snapshot", snapshot_, parse_name);
                return export_;
            },
            snapshot);
        to_file.add_option("SNAPSHOT", snapshot_, "The snapshot")->required();
        to_file.add_option("FILE", export_.file, "Where to: a tar archive, compressed by zstd")
            ->required();
        auto& from_file = add(
            "import", "Read a snapshot that was exported",
            [this](auto*) {
                import_.snapshot = value_of("snapshot", snapshot_, parse_name);
                return import_;
            },
            snapshot);
        from_file.add_option("FILE", import_.file, "What was exported")->required();
        from_file.add_option("SNAPSHOT", snapshot_, "What it is called")->required();
        from_file
            .add_option("--image", import_.image,
                        "The image that its VM was run with, if it is elsewhere by now")
            ->type_name("PATH");
        auto& rm = add(
            "rm", "Remove snapshots",
            [this](auto*) {
                snapshot_rm_.names = snapshot_names();
                return snapshot_rm_;
            },
            snapshot);
        rm.add_option("SNAPSHOT", names_, "The snapshots")->required();
        rm.add_flag("-f,--force", snapshot_rm_.force,
                    "Also those in use: VMs that began with one keep it to their end");
    }

    void add_fork() {
        auto& added =
            add("fork", "Start copies of a VM that runs, as it is now", [this](auto* app) {
                fork_.vm = parse_names({name_}).front();
                if (app->count("--name") > 0)
                    fork_.name = value_of("--name", snapshot_, parse_name);
                if (app->count("--number") > 0)
                    fork_.count = value_of("--number", timeout_, parse_count);
                for (const auto& text : fork_.publish) value_of("--publish", text, parse_publish);
                for (const auto& text : fork_.volumes) value_of("--volume", text, parse_volume);
                return fork_;
            });
        added.add_option("NAME", name_, "The VM")->required();
        added.add_option("-n,--number", timeout_, "How many [1]")->type_name("N");
        added
            .add_option("--name", snapshot_,
                        "Name of the copy; of several, with a number behind it [NAME's]")
            ->type_name("NAME");
        added
            .add_option("-p,--publish", fork_.publish,
                        "Forward a host port, which each copy has another of: 0:GUESTPORT "
                        "(repeatable)")
            ->allow_extra_args(false)
            ->type_name("PORTS");
        added
            .add_option("-v,--volume", fork_.volumes,
                        "A directory of the host in each: HOSTDIR:GUESTDIR[:ro] (repeatable)")
            ->allow_extra_args(false)
            ->type_name("VOLUME");
        added
            .add_option("--restore-hook", fork_.restore_hook,
                        "A shell script that each runs before anything else")
            ->type_name("FILE");
        added.add_flag("-q,--quiet", fork_.quiet, "No notes on stderr, only errors");
        added.footer("  qvm fork web -n 16 -p 0:22\n");
    }

    [[nodiscard]] std::vector<std::string> snapshot_names() const {
        std::vector<std::string> names;
        for (const auto& text : names_) names.push_back(value_of("snapshot", text, parse_name));
        return names;
    }

    void add_completion() {
        auto& added = add("completion", "Print a shell's completion script", [this](auto*) {
            return CompletionOptions{value_of("SHELL", shell_, parse_shell)};
        });
        added.add_option("SHELL", shell_, "bash, zsh or fish")->required();
        added.footer("  source <(qvm completion bash)\n");
    }

    /// "qvm net exec": the commands that were named.
    static std::string path_of(CLI::App& app) {
        const auto commands = app.get_subcommands();
        return commands.empty() ? app.get_name() : app.get_name() + " " + path_of(*commands[0]);
    }

    [[nodiscard]] CommandShape shape_of(const CLI::App& app, std::vector<std::string> path) const {
        CommandShape shape;
        shape.what = app.get_description();
        shape.takes_command = app.get_prefix_command();
        for (const auto* option : app.get_options())
            (option->get_positional() ? shape.positionals : shape.options)
                .push_back(shape_of(*option));
        for (const auto* subcommand : app.get_subcommands([](const CLI::App*) { return true; })) {
            path.push_back(subcommand->get_name());
            shape.subcommands.push_back(shape_of(*subcommand, path));
            path.pop_back();
        }
        shape.path = std::move(path);
        return shape;
    }

    static ArgumentShape shape_of(const CLI::Option& option) {
        ArgumentShape shape;
        for (const auto& name : option.get_snames()) shape.names.push_back("-" + name);
        for (const auto& name : option.get_lnames()) shape.names.push_back("--" + name);
        if (option.get_positional()) shape.names = {option.get_name(true)};
        shape.what = option.get_description();
        std::replace(shape.what.begin(), shape.what.end(), '\n', ' ');
        shape.value_required = option.get_expected_min() > 0 && option.get_type_size() > 0;
        constexpr std::string_view optional = "[=";
        const auto type = option.get_type_name();
        if (shape.value_required)
            shape.value = type;
        else if (type.starts_with(optional))
            shape.value = type.substr(optional.size(), type.size() - optional.size() - 1);
        shape.repeatable = option.get_expected_max() > 1;
        return shape;
    }

    /// CLI11's help of the innermost command that was named; `path` is the commands before it.
    static std::string help_of(CLI::App& app, const std::string& path = {}) {
        const auto commands = app.get_subcommands();
        const auto name = path.empty() ? app.get_name() : path + " " + app.get_name();
        if (!commands.empty()) return help_of(*commands.front(), name);
        auto text = app.help(path);
        // How CLI11 shows the value of an option that was given none.
        using Texts = std::pair<std::string_view, std::string_view>;
        for (const auto& [shown, meant] :
             {Texts{"--timings{-} [=FILE]", "--timings[=FILE]    "},
              Texts{"--warm{use} [=refresh]", "--warm[=refresh]      "}})
            if (const auto at = text.find(shown); at != std::string::npos)
                text.replace(at, shown.size(), meant);
        return text;
    }

    CLI::App app_{
        "qvm boots a QEMU guest inside a network of its own and leaves the host as it was.", "qvm"};
    std::vector<Subcommand> subcommands_;
    std::vector<const CLI::App*> with_command_;
    bool version_flag_ = false;

    VmTexts texts_;
    std::string name_, snapshot_, source_, target_, timeout_, boot_timeout_, timings_, warm_,
        shell_;
    std::vector<std::string> names_, wait_for_, packages_;
    std::vector<std::string> command_;
    GuestCommand guest_command_;
    bool terminal_ = false;
    RunOptions run_;
    CreateOptions create_;
    StartOptions start_;
    RemoveOptions remove_;
    VerbOptions verb_;
    PsOptions ps_;
    LogsOptions logs_;
    ExecOptions exec_;
    SshOptions ssh_;
    CopyOptions copy_;
    EventsOptions events_;
    QmpOptions qmp_;
    NetLsOptions net_ls_;
    DoctorOptions doctor_;
    ForkOptions fork_;
    SnapshotCreateOptions save_;
    SnapshotLsOptions snapshot_ls_;
    SnapshotRmOptions snapshot_rm_;
    SnapshotExportOptions export_;
    SnapshotImportOptions import_;
    ImageDemoOptions demo_;
    ImagePullOptions pull_;
    ImageImportOptions image_import_;
    ImageLsOptions image_ls_;
    ImageRmOptions image_rm_;
    ImageBuildDebianOptions debian_;
};

}  // namespace

Command parse_command_line(int argc, const char* const* argv) {
    return Parser{}(argc, argv);
}

CommandShape command_line_shape() {
    return Parser{}.shape();
}

std::string to_string(const CopyPlace& place) {
    return place.vm ? *place.vm + ":" + place.path : place.path;
}

}  // namespace qvm
