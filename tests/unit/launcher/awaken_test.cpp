#include "launcher/awaken.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "launcher/base64.h"
#include "launcher/directories.h"
#include "launcher/process.h"
#include "tests/unit/launcher/temporary.h"

using namespace qvm;
using namespace std::chrono_literals;

namespace {

const Awakening example{.name = "web-2",
                        .now = std::chrono::system_clock::time_point{1'800'000'000s + 250ms},
                        .random = "00112233445566778899aabbccddeeff",
                        .boot_id = "6b9f3a70-0000-4000-8000-000000000000"};

}  // namespace

TEST_CASE("a guest learns its name, the time, something to be random by, and its boot ID") {
    CHECK(awaken_call(example) ==
          "awaken web-2 1800000000 250000000 00112233445566778899aabbccddeeff "
          "6b9f3a70-0000-4000-8000-000000000000\n");
    CHECK(run_tool({"sh", "-n"}, awaken_functions()).err.empty());
}

TEST_CASE("a program tells it, one that waits if there is one, or else commands do") {
    struct Case {
        const char* what;
        const char* program;
        bool waits;
        int status;
    };
    const auto tried = GENERATE(
        Case{"one that waits", "perl", true, 0}, Case{"one that waits in vain", "python3", true, 1},
        Case{"one that is started", "python3", false, 0}, Case{"one that fails", "perl", false, 1},
        Case{"there is none", "ruby", true, 0});
    INFO(tried.what);
    const Temporary directory;
    const auto path = directory.path.string();
    const auto make = [&](const std::string& name, const std::string& script) {
        write_file(directory.path / name, "#!/bin/sh\n" + script);
        std::filesystem::permissions(directory.path / name, std::filesystem::perms::owner_all);
    };
    make(tried.program,
         "[ -z \"$4\" ] || echo ready >&\"$4\"\nread -r line\n"
         "echo \"$line\" >>" +
             path + "/told\nexit " + std::to_string(tried.status));
    make("date", "echo date \"$@\" >>" + path + "/told");
    make("mount", "echo mount \"$@\" >>" + path + "/told");
    for (const char* tool : {"mktemp", "mkfifo", "rm", "uname"})
        std::filesystem::create_symlink(std::string{"/usr/bin/"} + tool, directory.path / tool);
    // Without what it does to this machine.
    auto functions = awaken_functions();
    for (const std::string place : {"/proc/sys/kernel/", "/dev/urandom", "/run/", "/sys/"})
        for (auto at = functions.find(place); at != std::string::npos;
             at = functions.find(place, at + 1))
            functions.replace(at, place.size(), path + "/" + (place.back() == '/' ? "" : "random"));
    const auto rtc = GENERATE(0U, 30U, 3600U);  // ahead of the host
    std::filesystem::create_directories(directory.path / "class/rtc/rtc0");
    write_file(directory.path / "class/rtc/rtc0/since_epoch",
               std::to_string(1'800'000'000 + rtc) + "\n");
    const auto script = "PATH=" + path + "\n" + functions +
                        (tried.waits ? "exec 4>&1\nstart_awakener 4\n" : "") +
                        awaken_call(example) + "wait\n[ -z \"$helper\" ]";
    const auto done = run_tool({"/bin/sh", "-c", script});
    CHECK(done.err.empty());
    CHECK(done.status.code == 0);
    const bool is_there = std::string_view{tried.program} != "ruby";
    CHECK(done.out == (tried.waits && is_there ? "ready\n" : ""));
    const std::string words =
        "web-2 1800000000 250000000 00112233445566778899aabbccddeeff "
        "6b9f3a70-0000-4000-8000-000000000000\n";
    const bool by_commands = tried.status != 0 || !is_there;
    auto told = read_file(directory.path / "told").value_or("");
    for (int i = 0; by_commands && i < 100 && told.find("mount") == std::string::npos; ++i) {
        std::this_thread::sleep_for(20ms);
        told = read_file(directory.path / "told").value_or("");
    }
    CHECK(told ==
          (is_there ? words : "") +
              (by_commands
                   ? "date -u -s @" +
                         std::string{rtc == 30 ? "1800000030" : "1800000000.250000000"} +
                         "\nmount --bind " + path + "/qvm-boot-id " + path + "/random/boot_id\n"
                   : ""));
    if (by_commands) CHECK(read_file(directory.path / "hostname") == "web-2\n");
}

TEST_CASE("the hook has the last word, and its own exit status") {
    const auto end_of = [](const std::string& hook) {
        const auto arguments = awaken_arguments(example, hook);
        CHECK(arguments.at("capture-output") == true);
        auto script = from_base64(arguments.at("input-data").get_string());
        // Without what it does to this machine.
        const auto begin = script.rfind("set -- web-2 ");
        REQUIRE(begin != std::string::npos);
        return run_tool({"sh"}, script.substr(begin));
    };
    const auto done = end_of("sleep 10 & echo; echo $QVM_NAME; echo 'it''s \xff' >&2; exit 3");
    CHECK(done.out == "its \xff\n");
    CHECK(done.status.code == 3);
    CHECK(end_of("[ $QVM_NAME = web-2 ]").status.code == 0);
    CHECK(end_of("").status.code == 0);
}
