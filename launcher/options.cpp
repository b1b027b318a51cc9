#include "launcher/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>

#include "launcher/failure.h"

namespace qvm {

namespace {

constexpr const char* run_footer =
    "--net MODE is isolated, nat (the default), flat, user or none; with the first three, keys\n"
    "may follow: subnet=CIDR,address=IP,mac=MAC,mtu=BYTES,queues=N, and for nat pool=CIDR.\n"
    "On a terminal, Ctrl-] leaves the console.\n"
    "\n"
    "Exit status: 0 the guest powered off; 123 it panicked, or QEMU died; 124 --timeout;\n"
    "125 qvm failed; 128+N qvm was ended by signal N.\n"
    "\n"
    "  qvm run --net isolated disk.qcow2\n"
    "  printf 'ip addr\\npoweroff\\n' | qvm run demo.qcow2\n";

/// Reads one option's value, and says which option it was when the value is bad.
template <typename Parse>
auto value_of(std::string_view option, const std::string& text, Parse parse) {
    try {
        return parse(text);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("{} '{}': {}", option, text, failure.what()), failure.hint());
    }
}

Accel parse_accel(std::string_view text) {
    if (text == "auto") return Accel::automatic;
    if (text == "kvm") return Accel::kvm;
    if (text == "tcg") return Accel::tcg;
    throw Failure("is not an accelerator", "accelerators are auto, kvm and tcg");
}

/// The options' texts as CLI11 collects them; they are read after it is done.
struct RunTexts {
    std::string image, name, memory = "1G", cpus = "1", net = "nat", accel = "auto", timeout,
                             timings;
};

struct Run {
    RunOptions options;
    RunTexts texts;
    CLI::App* app = nullptr;
};

void add_run(CLI::App& qvm, Run& run) {
    auto* app =
        qvm.add_subcommand("run", "Boot IMAGE in a throw-away VM, console in this terminal");
    run.app = app;
    auto& options = run.options;
    auto& texts = run.texts;
    app->add_option("IMAGE", texts.image, "Disk image, qcow2 or raw; it is not written to");
    app->add_option("-n,--name", texts.name, "Name of the VM [IMAGE's and a number]");
    app->add_option("-m,--memory", texts.memory, "Memory: 512M, 2G; MiB without a unit [1G]");
    app->add_option("--cpus,--vcpus", texts.cpus, "Number of CPUs [1]");
    app->add_option("--net,--network", texts.net, "Network: MODE[,KEY=VALUE...] [nat]");
    app->add_option("--kernel", options.kernel, "Boot this kernel instead of the disk's");
    app->add_option("--initrd", options.initrd, "Its initial RAM disk");
    app->add_option("--append", options.append, "Its command line");
    app->add_flag("--persist", options.persist, "Write to IMAGE itself");
    app->add_flag("--trust-backing", options.trust_backing,
                  "Let IMAGE name other files as its backing");
    app->add_option("--accel", texts.accel, "auto, kvm or tcg [auto]");
    app->add_option("--timeout", texts.timeout, "End the VM after this long: 30s, 5m");
    app->add_option("--qemu-arg", options.qemu_args, "Pass ARG on to QEMU (repeatable)")
        ->allow_extra_args(false)
        ->type_name("ARG");
    app->add_flag("--dry-run", options.dry_run, "Print the network plan and QEMU's command line");
    app->add_flag("--timings{-}", texts.timings,
                  "Time of each phase in ms, on stderr or as JSON in FILE")
        ->type_name("[=FILE]");
    app->add_flag("-q,--quiet", options.quiet, "No notes on stderr, only errors");
    app->add_flag("-D,--debug", options.debug, "Say on stderr what is done");
    app->footer(run_footer);
}

void check_run(const RunOptions& run) {
    if (!run.image && !run.kernel) throw Failure("run: IMAGE is missing", "qvm run --help");
    if (run.initrd && !run.kernel) throw Failure("--initrd: goes with --kernel only");
    if (run.append && !run.kernel) throw Failure("--append: goes with --kernel only");
    if (run.persist && !run.image) throw Failure("--persist: there is no IMAGE to write to");
}

unsigned parse_cpus(std::string_view text) {
    constexpr unsigned most = 255;  // of the q35 machine without an IOMMU
    unsigned value = 0;
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || rest != text.data() + text.size() || value < 1 || value > most)
        throw Failure(fmt::format("must be a number from 1 to {}", most));
    return value;
}

RunOptions finish(Run& run) {
    auto& options = run.options;
    const auto& texts = run.texts;
    if (!texts.image.empty()) options.image = texts.image;
    if (run.app->count("--name") > 0) options.name = value_of("--name", texts.name, parse_name);
    options.memory_mib = value_of("--memory", texts.memory, parse_memory);
    options.cpus = value_of("--cpus", texts.cpus, parse_cpus);
    options.net = value_of("--net", texts.net, parse_net);
    options.accel = value_of("--accel", texts.accel, parse_accel);
    if (run.app->count("--timeout") > 0)
        options.timeout = value_of("--timeout", texts.timeout, parse_duration);
    options.timings = run.app->count("--timings") > 0;
    if (options.timings && texts.timings != "-") options.timings_file = texts.timings;
    check_run(options);
    return options;
}

void add_image_demo(CLI::App& qvm, ImageDemoOptions& options) {
    auto* image = qvm.add_subcommand("image", "Disk images");
    image->require_subcommand(1);
    auto* demo =
        image->add_subcommand("demo", "Build the demo guest's disk from Debian's packages");
    demo->add_option("PATH", options.path, "Where to put it [demo.qcow2]");
    demo->add_flag("-q,--quiet", options.quiet, "No progress on stderr");
    options.path = "demo.qcow2";
}

/// CLI11's help of the innermost command that was named; `path` is the commands before it.
std::string help_of(CLI::App& app, const std::string& path = {}) {
    const auto commands = app.get_subcommands();
    const auto name = path.empty() ? app.get_name() : path + " " + app.get_name();
    if (!commands.empty()) return help_of(*commands.front(), name);
    auto text = app.help(path);
    // How CLI11 shows the value of an option that was given none.
    constexpr std::string_view shown = "--timings{-} [=FILE]";
    constexpr std::string_view meant = "--timings[=FILE]    ";
    if (const auto at = text.find(shown); at != std::string::npos)
        text.replace(at, shown.size(), meant);
    return text;
}

}  // namespace

Command parse_command_line(int argc, const char* const* argv) {
    CLI::App app{
        "qvm boots a QEMU guest inside a network of its own and leaves the host as it was.", "qvm"};
    app.require_subcommand(1);
    app.set_help_all_flag();
    Run run;
    ImageDemoOptions demo;
    add_run(app, run);
    add_image_demo(app, demo);
    auto* version = app.add_subcommand("version", "Print qvm's version");
    bool version_flag = false;
    app.add_flag("--version", version_flag, "Print qvm's version");
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        return PrintText{help_of(app)};
    } catch (const CLI::ParseError& error) {
        if (version_flag) return PrintText{"qvm " QVM_VERSION "\n"};
        throw Failure(error.what(), run.app->parsed() ? "qvm run --help" : "qvm --help");
    }
    if (version->parsed() || version_flag) return PrintText{"qvm " QVM_VERSION "\n"};
    if (run.app->parsed()) return finish(run);
    return demo;
}

}  // namespace qvm
