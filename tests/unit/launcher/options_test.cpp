#include "launcher/options.h"

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
    CHECK(options.image == "disk.qcow2");
    CHECK(options.memory_mib == 1024);
    CHECK(options.cpus == 1);
    CHECK(options.net.mode == NetOption::Mode::nat);
    CHECK(options.accel == Accel::automatic);
    CHECK(!options.name);
    CHECK(!options.timings);
    CHECK(!options.timeout);
    CHECK(!options.persist);
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
    CHECK(options.memory_mib == 2048);
    CHECK(options.cpus == 4);
    CHECK(options.net.mode == NetOption::Mode::isolated);
    CHECK(options.net.mtu == 1400U);
    CHECK(options.kernel == "k");
    CHECK(options.initrd == "i");
    CHECK(options.append == "console=ttyS0 quiet");
    CHECK(options.persist);
    CHECK(options.accel == Accel::tcg);
    CHECK(options.qemu_args == std::vector<std::string>{"-device", "usb-ehci"});
    CHECK(options.dry_run);
    CHECK(options.timings);
    CHECK(options.timings_file == "t.json");
    CHECK(options.timeout == std::chrono::seconds{90});
    CHECK(options.quiet);
    CHECK(options.debug);
    CHECK(options.image == "disk.raw");
}

TEST_CASE("run: options may stand behind the image, and --timings takes no word of its own") {
    const auto options = run({"--timings", "disk.qcow2", "-q"});
    CHECK(options.image == "disk.qcow2");
    CHECK(options.timings);
    CHECK(!options.timings_file);
    CHECK(options.quiet);
}

TEST_CASE("run: the kernel alone needs no image, and its companions need the kernel") {
    CHECK(!run({"--kernel", "k"}).image);
    CHECK(failure_of({}) == "run: IMAGE is missing");
    CHECK(failure_of({"--initrd", "i", "d"}) == "--initrd: goes with --kernel only");
    CHECK(failure_of({"--append", "a", "d"}) == "--append: goes with --kernel only");
    CHECK(failure_of({"--persist", "--kernel", "k"}) == "--persist: there is no IMAGE to write to");
}

TEST_CASE("run: a bad value is shown with its option") {
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
}
