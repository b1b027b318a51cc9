#include "launcher/options.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;

namespace {

Command parse(std::vector<const char*> words) {
    words.insert(words.begin(), "qvm");
    return parse_command_line(static_cast<int>(words.size()), words.data());
}

RunOptions run(std::vector<const char*> words) {
    words.insert(words.begin(), "run");
    return std::get<RunOptions>(parse(words));
}

std::string failure_of(std::vector<const char*> words) {
    try {
        run(words);
    } catch (const Failure& failure) {
        return failure.what();
    }
    return {};
}

}  // namespace

TEST_CASE("run: defaults") {
    const auto options = run({"disk.qcow2"});
    CHECK(options.vm.image == "disk.qcow2");
    CHECK(options.vm.memory_mib == 1024);
    CHECK(options.vm.cpus == 1);
    CHECK(!options.vm.net);
    CHECK(options.vm.net_or_default().mode == NetOption::Mode::nat);
    CHECK(options.vm.accel == Accel::automatic);
    CHECK(!options.name);
    CHECK(!options.timings);
    CHECK(!options.timeout);
    CHECK(!options.persist);
    CHECK(!options.detach);
    CHECK(!options.audit);
    CHECK(!options.vm.group);
    CHECK(!options.vm.arch);
    CHECK(!options.vm.firmware);
    CHECK(options.vm.publish.empty());
}

TEST_CASE("run: every option") {
    const auto options = run({"--name",    "Web",
                              "-m",        "2G",
                              "--cpus",    "4",
                              "--net",     "isolated,mtu=1400",
                              "--kernel",  "k",
                              "--initrd",  "i",
                              "--append",  "console=ttyS0 quiet",
                              "--persist", "--accel",
                              "tcg",       "--qemu-arg",
                              "-device",   "--qemu-arg=usb-ehci",
                              "--dry-run", "--timings=t.json",
                              "--timeout", "90",
                              "-q",        "-D",
                              "disk.raw"});
    CHECK(options.name == "web");
    CHECK(options.vm.memory_mib == 2048);
    CHECK(options.vm.cpus == 4);
    CHECK(options.vm.net->mode == NetOption::Mode::isolated);
    CHECK(options.vm.net->mtu == 1400U);
    CHECK(options.vm.kernel == "k");
    CHECK(options.vm.initrd == "i");
    CHECK(options.vm.append == "console=ttyS0 quiet");
    CHECK(options.persist);
    CHECK(options.vm.accel == Accel::tcg);
    CHECK(options.vm.qemu_args == std::vector<std::string>{"-device", "usb-ehci"});
    CHECK(options.dry_run);
    CHECK(options.timings);
    CHECK(options.timings_file == "t.json");
    CHECK(options.timeout == std::chrono::seconds{90});
    CHECK(options.verbosity.quiet);
    CHECK(options.verbosity.debug);
    CHECK(options.vm.image == "disk.raw");
}

TEST_CASE("run: options may stand behind the image, and --timings takes no word of its own") {
    const auto options = run({"--timings", "disk.qcow2", "-q"});
    CHECK(options.vm.image == "disk.qcow2");
    CHECK(options.timings);
    CHECK(!options.timings_file);
    CHECK(options.verbosity.quiet);
}

TEST_CASE("run: the kernel alone needs no image, and its companions need the kernel") {
    CHECK(!run({"--kernel", "k"}).vm.image);
    CHECK(failure_of({}) == "run: IMAGE is missing");
    CHECK(failure_of({"--initrd", "i", "d"}) == "--initrd: goes with --kernel only");
    CHECK(failure_of({"--append", "a", "d"}) == "--append: goes with --kernel only");
    CHECK(failure_of({"--persist", "--kernel", "k"}) == "--persist: there is no IMAGE to write to");
}

TEST_CASE("run: architecture and firmware") {
    const auto options =
        run({"--arch", "arm64", "--firmware", "uefi", "--secure-boot", "--tpm", "d"});
    CHECK(options.vm.arch == Architecture::aarch64);
    CHECK(options.vm.firmware->kind == FirmwareOption::Kind::uefi);
    CHECK(options.vm.secure_boot);
    CHECK(options.vm.tpm);
    CHECK(run({"--firmware", "OVMF.fd", "d"}).vm.firmware->file == "OVMF.fd");
    CHECK(failure_of({"--arch", "riscv64", "d"}) ==
          "--arch 'riscv64': is not an architecture that is known");
    CHECK(failure_of({"--firmware", "", "d"}) == "--firmware '': is not bios, uefi or a file");
    CHECK(failure_of({"--secure-boot", "--firmware", "bios", "d"}) ==
          "--secure-boot: is UEFI's, and --firmware is 'bios'");
    CHECK(failure_of({"--secure-boot", "--firmware", "./uefi", "d"}) ==
          "--secure-boot: is UEFI's, and --firmware is './uefi'");
    CHECK(failure_of({"--tpm", "snapshot:ready"}) ==
          "--tpm: the machine of a snapshot is as it was saved");
}

TEST_CASE("run: --audit is for a run whose end is seen") {
    CHECK(run({"--audit", "d"}).audit);
    CHECK(run({"--audit", "--dry-run", "d"}).audit);
    CHECK(failure_of({"--audit", "-d", "d"}) == "--audit: goes with a run in the foreground only");
}

TEST_CASE("run: a bad value is shown with its option") {
    for (const char* option : {"--net", "--name", "--group", "--timeout", "--memory", "--publish"})
        CHECK(failure_of({option, "", "d"}).starts_with(std::string{option} + " ''"));
    CHECK(failure_of({"-m", "0", "d"}) == "--memory '0': must be more than 0");
    CHECK(failure_of({"--cpus", "0", "d"}) == "--cpus '0': must be a number from 1 to 255");
    CHECK(failure_of({"--net", "lan", "d"}) == "--net 'lan': unknown mode 'lan'");
    CHECK(failure_of({"--accel", "xen", "d"}) == "--accel 'xen': is not an accelerator");
    CHECK(failure_of({"--timeout", "soon", "d"}) == "--timeout 'soon': is not a number");
    CHECK(failure_of({"--name", "a b", "d"}) ==
          "--name 'a b': must be letters, digits and '-', as a host name is");
    CHECK(failure_of({"--no-such-option", "d"}).find("--no-such-option") != std::string::npos);
    CHECK(failure_of({"d", "another"}).find("another") != std::string::npos);
}

TEST_CASE("run: groups, ports, and what does not go with them") {
    const auto options =
        run({"-d", "--group", "Lab", "-p", "8080:80", "-p", "0.0.0.0:0:53/udp", "d"});
    CHECK(options.detach);
    CHECK(options.vm.group == "lab");
    REQUIRE(options.vm.publish.size() == 2);
    CHECK(to_string(options.vm.publish[0]) == "127.0.0.1:8080:80/tcp");
    CHECK(to_string(options.vm.publish[1]) == "0.0.0.0:0:53/udp");
    CHECK(failure_of({"--group", "lab", "--net", "user", "d"}) ==
          "--group 'lab': VMs of a group share a namespace, and --net user has none");
    CHECK(failure_of({"-p", "80:80", "--net", "none", "d"}) ==
          "--publish: a guest with --net none has no address");
    CHECK(failure_of({"-p", "80", "d"}) ==
          "--publish '80': must be [HOSTIP:]HOSTPORT:GUESTPORT[/udp]");
    CHECK_THROWS_WITH(parse({"create", "d", "--", "make"}),
                      "qvm create takes no command after '--'");
}

TEST_CASE("run: a command, and what goes with it only") {
    const auto options = run({"-i", "-e", "A=1", "d", "--boot-timeout", "90", "--", "make", "-k"});
    REQUIRE(options.command);
    CHECK(options.command->argv == std::vector<std::string>{"make", "-k"});
    CHECK(options.command->environment == std::vector<std::string>{"A=1"});
    CHECK(options.interactive);
    CHECK(options.boot_timeout == std::chrono::seconds{90});
    CHECK(!run({"d", "--"}).command);
    CHECK(failure_of({"-d", "d", "--", "make"}) == "--detach: goes with no command");
    CHECK(failure_of({"-i", "d"}) == "--interactive: goes with a command only");
    CHECK(failure_of({"-e", "A=1", "d"}) == "--env: goes with a command only");
    CHECK(failure_of({"-w", "/", "d"}) == "--workdir: goes with a command only");
}

TEST_CASE("commands that name VMs") {
    const auto stop = std::get<VerbOptions>(parse({"stop", "-t", "1.5", "Web", "db"}));
    CHECK(stop.verb == VerbOptions::Verb::stop);
    CHECK(stop.names == std::vector<std::string>{"web", "db"});
    CHECK(stop.timeout == std::chrono::milliseconds{1500});
    CHECK(std::get<VerbOptions>(parse({"stop", "web"})).timeout == std::chrono::seconds{10});
    CHECK(std::get<VerbOptions>(parse({"restart", "-t", "0", "web"})).timeout.count() == 0);
    CHECK(std::get<VerbOptions>(parse({"kill", "web"})).verb == VerbOptions::Verb::kill);
    CHECK_THROWS_WITH(parse({"stop", "-t", "soon", "web"}), "--timeout 'soon': is not a number");
    CHECK_THROWS_WITH(parse({"stop", "a/b"}),
                      "VM 'a/b': must be letters, digits and '-', as a host name is");
    CHECK_THROWS_AS(parse({"stop"}), Failure);
    CHECK(std::get<RemoveOptions>(parse({"rm", "-f", "web"})).force);
    CHECK(std::get<StartOptions>(parse({"start", "web"})).name == "web");
    CHECK(std::get<PsOptions>(parse({"ps", "-a", "--json"})).json);
    CHECK(std::get<LogsOptions>(parse({"logs", "-f", "web"})).follow);
    const auto qmp = std::get<QmpOptions>(parse({"qmp", "web", "query-block", "{}"}));
    CHECK(qmp.command == "query-block");
    CHECK(qmp.arguments == "{}");
    const auto create = std::get<CreateOptions>(parse({"create", "--name", "db", "d.qcow2"}));
    CHECK(create.name == "db");
    CHECK_THROWS_AS(parse({"create", "--persist", "d.qcow2"}), Failure);
}

TEST_CASE("exec: the options before the name are qvm's, all after it is the guest's") {
    const auto exec = std::get<ExecOptions>(parse(
        {"exec", "-i", "-e", "A=1 2", "--env=B=", "-e", "C", "-w", "/tmp", "box", "ls", "-i"}));
    CHECK(exec.name == "box");
    CHECK(exec.interactive);
    CHECK(exec.command.argv == std::vector<std::string>{"ls", "-i"});
    CHECK(exec.command.environment == std::vector<std::string>{"A=1 2", "B=", "C"});
    CHECK(exec.command.directory == "/tmp");
    CHECK(std::get<ExecOptions>(parse({"exec", "box", "--", "-x"})).command.argv ==
          std::vector<std::string>{"-x"});

    CHECK_THROWS_WITH(parse({"exec", "box"}), "exec: COMMAND is missing");
    for (const auto* variable : {"=x", "", "1A=x", "a-b=x", "é=x"})
        CHECK_THROWS_WITH(parse({"exec", "-e", variable, "box", "true"}),
                          fmt::format("--env '{}': is not NAME[=VALUE]", variable));
}

TEST_CASE("cp: one of the two is a VM's") {
    const auto copy = [](const char* from, const char* to) {
        return std::get<CopyOptions>(parse({"cp", from, to}));
    };
    auto options = copy("a.tar", "Web:/srv/x:y");
    CHECK(!options.from.vm);
    CHECK(options.from.path == "a.tar");
    CHECK(options.to.vm == "web");
    CHECK(options.to.path == "/srv/x:y");
    CHECK(to_string(options.to) == "web:/srv/x:y");
    options = copy("web:", "./a:b");
    CHECK(options.from.path.empty());
    CHECK(options.to.path == "./a:b");
    const char* wrong = "cp: one of SRC and DST is a VM's, as NAME:PATH, and the other is not";
    CHECK_THROWS_WITH(copy("a", "b"), wrong);
    CHECK_THROWS_WITH(copy("a:b", "c:d"), wrong);
    CHECK_THROWS_WITH(copy("a b:c", "d"),
                      "VM 'a b': must be letters, digits and '-', as a host "
                      "name is");
}

TEST_CASE("net exec: the command is the host's, options and all") {
    const auto command = [](std::vector<const char*> words) {
        return std::get<NetExecOptions>(parse(words)).command;
    };
    const std::vector<std::string> wanted{"ip", "-br", "addr"};
    CHECK(command({"net", "exec", "lab", "--", "ip", "-br", "addr"}) == wanted);
    CHECK(command({"net", "exec", "lab", "ip", "-br", "addr"}) == wanted);
    CHECK(command({"net", "exec", "lab", "--", "sh", "--", "x"}) ==
          std::vector<std::string>{"sh", "--", "x"});
    CHECK_THROWS_WITH(parse({"net", "exec", "lab"}), "net exec: COMMAND is missing");
}

TEST_CASE("image: names, files and URLs") {
    const auto import = [](std::vector<const char*> words) {
        words.insert(words.begin(), {"image", "import"});
        return std::get<ImageImportOptions>(parse(words)).name;
    };
    CHECK(import({"/images/My disk.qcow2"}) == "My-disk");
    CHECK(import({"/images/disk.qcow2", "debian:12"}) == "debian:12");
    CHECK_THROWS_WITH(import({"disk.qcow2", "a/b"}),
                      "image 'a/b': must be NAME[:TAG], of letters, digits, '-', '_' and '.'");
    const auto pull = std::get<ImagePullOptions>(parse(
        {"image", "pull", "--checksum", ("sha256:" + std::string(64, '0')).c_str(), "http://x/y"}));
    CHECK(pull.image == "http://x/y");
    CHECK(pull.checksum->hex == std::string(64, '0'));
    CHECK(!pull.name);
    CHECK(std::get<ImagePullOptions>(parse({"image", "pull", "debian", "d"})).name == "d");
    CHECK_THROWS_WITH(parse({"image", "pull", "ftp://x"}),
                      "image 'ftp://x': is no URL of http, https or file");
    CHECK_THROWS_WITH(parse({"image", "pull", "x/y"}),
                      "image 'x/y': must be NAME[:TAG], of letters, digits, '-', '_' and '.'");
    CHECK_THROWS_WITH(parse({"image", "pull", "--checksum", "x", "d"}),
                      "--checksum 'x': is not sha256:HEX or sha512:HEX");
    CHECK(std::get<ImageTagOptions>(parse({"image", "tag", "a", "b:1"})).name == "b:1");
    CHECK(std::get<ImageExportOptions>(parse({"image", "export", "a", "b/c"})).file == "b/c");
    CHECK(!std::get<ImagePruneOptions>(parse({"image", "prune"})).older_than);
    CHECK(std::get<ImagePruneOptions>(parse({"image", "prune", "--older-than", "2d"})).older_than ==
          std::chrono::hours{48});
    CHECK(std::get<ImageVerifyOptions>(parse({"image", "verify"})).names.empty());
    CHECK(std::get<ImageRmOptions>(parse({"image", "rm", "-f", "a", "b"})).names.size() == 2);
    const auto whole = "sha256:" + std::string(64, 'a'), more = whole + "a";
    for (const auto* digest : {whole.c_str(), "sha256:0123456789ab"})
        CHECK(std::get<ImageRmOptions>(parse({"image", "rm", digest})).names.front() == digest);
    CHECK_THROWS_WITH(parse({"image", "rm", more.c_str()}),
                      Catch::Contains("12 to 64 hexadecimal digits"));
}

TEST_CASE("other commands") {
    CHECK(std::get<ImageDemoOptions>(parse({"image", "demo"})).path == "demo.qcow2");
    CHECK(std::get<ImageDemoOptions>(parse({"image", "demo", "x.qcow2"})).path == "x.qcow2");
    CHECK(std::get<PrintText>(parse({"version"})).text.starts_with("qvm "));
    CHECK(std::get<PrintText>(parse({"--version"})).text.starts_with("qvm "));
    const auto help = std::get<PrintText>(parse({"run", "--help"})).text;
    CHECK(help.find("Usage: qvm run [OPTIONS] [IMAGE]") != std::string::npos);
    CHECK(help.find("--timings[=FILE]    ") != std::string::npos);
    CHECK(std::get<PrintText>(parse({"--help"})).text.find("run") != std::string::npos);
    CHECK_THROWS_AS(parse({}), Failure);
    CHECK_THROWS_AS(parse({"launch"}), Failure);
    CHECK_THROWS_AS(parse({"image"}), Failure);
    const auto debian = std::get<ImageBuildDebianOptions>(
        parse({"image", "build-debian", "--packages", "gcc,make", "--packages=g++", "--suite",
               "trixie", "-q", "x.qcow2"}));
    CHECK(debian.path == "x.qcow2");
    CHECK(debian.packages == std::vector<std::string>{"gcc", "make", "g++"});
    CHECK((debian.suite == "trixie" && debian.quiet));
    CHECK(std::get<ImageBuildDebianOptions>(parse({"image", "build-debian"})).path ==
          "debian.qcow2");
    CHECK_THROWS_WITH(parse({"image", "build-debian", "--packages", "gcc,"}),
                      Catch::StartsWith("--packages 'gcc,': "));
    CHECK_THROWS_WITH(parse({"image", "build-debian", "--suite", "-x"}),
                      Catch::StartsWith("--suite '-x': "));
}

TEST_CASE("doctor: a table, or JSON") {
    CHECK(!std::get<DoctorOptions>(parse({"doctor"})).json);
    CHECK(std::get<DoctorOptions>(parse({"doctor", "--json"})).json);
    CHECK_THROWS_AS(parse({"doctor", "me"}), Failure);
}
