#include "launcher/process.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>
#include <map>

#include "launcher/failure.h"

using namespace qvm;

TEST_CASE("a tool's output, error output, status and input") {
    const auto result = run_tool({"sh", "-c", "cat; echo problem >&2; exit 3"}, "hello\n");
    CHECK(result.out == "hello\n");
    CHECK(result.err == "problem\n");
    CHECK(result.status.code == 3);
    CHECK(result.status.signal == 0);
    CHECK(run_tool({"sh", "-c", "kill -TERM $$"}).status.signal == SIGTERM);
    CHECK(run_tool(Tool{.argv = {"pwd"}, .directory = "/usr"}).out == "/usr\n");
    ::signal(SIGPIPE, SIG_IGN);  // as main() has it
    const std::string much(300'000, 'x');
    CHECK(run_tool({"cat"}, much).out == much);
    CHECK(run_tool({"true"}, much).status.code == 0);  // never reads its input
}

TEST_CASE("what a tool prints is told while it runs, and one that prints nothing is killed") {
    std::string out, err;
    const auto result = run_tool(Tool{.argv = {"sh", "-c", "echo one; echo two >&2; sleep 60"},
                                      .patience = std::chrono::seconds{1},
                                      .on_output = [&](std::string_view piece) { out += piece; },
                                      .on_error = [&](std::string_view piece) { err += piece; }});
    CHECK((out == "one\n" && err == "two\n"));
    CHECK((result.out == out && result.err == err));
    CHECK(result.end == ToolResult::End::impatience);
    CHECK(result.status.signal == SIGKILL);
    CHECK(run_tool({"true"}).end == ToolResult::End::itself);
}

TEST_CASE("a tool may print for ever, and nothing grows or waits for that") {
    const auto run = [](const std::string& script, const auto& on_error) {
        return run_tool(Tool{.argv = {"sh", "-c", script},
                             .patience = std::chrono::seconds{1},
                             .on_error = on_error});
    };
    std::size_t told = 0;
    const auto count = [&](std::string_view piece) { told += piece.size(); };
    const auto much = run("head -c 20000000 /dev/zero >&2", count);
    CHECK((told == 20'000'000 && much.err.size() == 8 << 20));
    CHECK(run("while :; do echo x; done >&2", nullptr).end == ToolResult::End::impatience);
    const auto enough = [](std::string_view) { throw Failure("enough"); };
    CHECK_THROWS_WITH(run("echo x >&2; exec sleep 60", enough), "enough");
}

TEST_CASE("a tool is killed when it is to stop") {
    const UniqueFd stop{::open("/dev/zero", O_RDONLY | O_CLOEXEC)};
    const auto result = run_tool(Tool{.argv = {"sleep", "60"}, .stop = stop.get()});
    CHECK(result.end == ToolResult::End::stopped);
    CHECK(result.status.signal == SIGKILL);
}

TEST_CASE("a tool has its limits") {
    const auto run = [](const std::string& script) {
        Tool tool{.argv = {"sh", "-c", script}};
        tool.confinement.emplace().limits = {
            .memory = 64 << 20, .cpu = std::chrono::seconds{1}, .file_size = 1000};
        return run_tool(tool);
    };
    CHECK(run("true").status.code == 0);
    CHECK(run("ulimit -H -t 1000 || echo not more").out == "not more\n");
    CHECK_THAT(run("dd if=/dev/zero of=/dev/null bs=200M count=1").err,
               Catch::Contains("memory exhausted"));
    CHECK(run("while :; do :; done").status.signal == SIGKILL);
    CHECK(run("exec dd if=/dev/zero of=$(mktemp -u) bs=2000 count=1").status.signal == SIGXFSZ);
}

TEST_CASE("a tool opens what it was given, and no other file") {
    const UniqueFd given{::open(QVM_SOURCE_DIR "/README.md", O_RDONLY | O_CLOEXEC)};
    const UniqueFd written{::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    const auto rules = allowed_opens("/usr/bin/sh", {given.get()}, {written.get()});
    if (!rules) {
        WARN("this kernel has no Landlock");
        return;
    }
    const auto run = [&](const std::string& script) {
        Tool tool{.argv = {"sh", "-c", script},
                  .inherit = {{rules.get(), 3}, {given.get(), 4}, {written.get(), 5}}};
        tool.confinement.emplace().allowed_opens = 3;
        return run_tool(tool);
    };
    CHECK(run("cat /proc/self/fd/4").out.starts_with("# qvm"));
    CHECK(run("echo x >/proc/self/fd/5 && cat /proc/self/fd/5").out == "x\n");
    for (const auto* denied :
         {"cat /etc/passwd", "echo x >/proc/self/fd/4", "ls /", "touch /tmp/qvm-test-touched",
          "mkdir /tmp/qvm-test-made", "cat /proc/self/status"}) {
        CAPTURE(denied);
        CHECK_THAT(run(denied).err, Catch::Contains("Permission denied"));
    }
}

TEST_CASE("a tool keeps to itself") {
    const UniqueFd file{::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    for (const auto& [script, why] : std::map<std::string, std::string>{
             {"exec chmod 666 /proc/self/fd/3", "changing permissions of '/proc/self/fd/3': "},
             {"kill -9 $PPID", "kill: "},
             {"sleep 60 & exit 1", "fork"}}) {
        CAPTURE(script);
        Tool tool{.argv = {"sh", "-c", script}, .inherit = {{file.get(), 3}}};
        tool.confinement.emplace().keeps_to_itself = true;
        const auto result = run_tool(tool);
        CHECK(result.status.code != 0);
        CHECK_THAT(result.err, Catch::Contains(why));
    }
}

TEST_CASE("another user's tool has the one capability that it was to keep") {
    if (::geteuid() != 0) return;
    const UniqueFd file{::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0)};
    const auto run = [&](int capability) {
        Tool tool{.argv = {"sh", "-c", "id -u; grep Cap /proc/self/status; cat /proc/self/fd/3"},
                  .inherit = {{file.get(), 3}}};
        auto& confinement = tool.confinement.emplace();
        confinement.uid = confinement.gid = 0x70000001;
        confinement.groups.emplace();
        confinement.kept_capability = capability;
        return run_tool(tool);
    };
    const auto none = run(-1);
    CHECK_THAT(none.out,
               Catch::StartsWith("1879048193\n") && Catch::Contains("CapEff:\t0000000000000000"));
    CHECK_THAT(none.err, Catch::Contains("Permission denied"));
    const auto one = run(CAP_DAC_READ_SEARCH);
    for (const auto* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"})
        CHECK_THAT(one.out, Catch::Contains(std::string{set} + ":\t0000000000000004"));
    CHECK(one.err.empty());
}

TEST_CASE("a program that cannot be started") {
    CHECK_THROWS_WITH(run_tool({"no-such-program-here"}),
                      "start 'no-such-program-here': not found in PATH");
    CHECK_THROWS_WITH(run_tool({"/etc/passwd"}), "start '/etc/passwd': execute: Permission denied");
}

TEST_CASE("a child has the descriptors that it was given, under their numbers, and no others") {
    const UniqueFd leak{::open("/dev/null", O_RDONLY)};  // not close-on-exec
    const UniqueFd first{::memfd_create("first", 0)};
    const UniqueFd second{::memfd_create("second", 0)};
    const UniqueFd out{::memfd_create("out", 0)};
    SpawnSpec spec;
    spec.argv = {"ls", "-l", "/proc/self/fd"};
    // Each under the number of another, which a careless dup2 would overwrite.
    spec.inherit = {{first.get(), 5}, {second.get(), 4}};
    spec.stdout_fd = out.get();
    auto child = Child::spawn(spec);
    CHECK(child.wait_blocking().code == 0);
    std::string text(4096, '\0');
    text.resize(static_cast<std::size_t>(::pread(out.get(), text.data(), text.size(), 0)));
    CHECK(text.find("5 -> /memfd:first") != std::string::npos);
    CHECK(text.find("4 -> /memfd:second") != std::string::npos);
    CHECK(text.find("0 -> /dev/null") != std::string::npos);
    CHECK(text.find("2 -> /dev/null") != std::string::npos);
    // A line says "total 0", and ls has the directory itself open.
    CHECK(text.find("3 -> /proc/") != std::string::npos);
    CHECK(std::count(text.begin(), text.end(), '\n') == 1 + 5 + 1);
}

TEST_CASE("signals are as a program expects them") {
    ::signal(SIGPIPE, SIG_IGN);  // a child must not inherit this
    const auto result = run_tool({"grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"});
    for (const char* set : {"SigBlk", "SigIgn"})
        CHECK(result.out.find(std::string{set} + ":\t0000000000000000") != std::string::npos);
}

TEST_CASE("a child dies with its parent, and with its object") {
    const auto is_alive = [](pid_t pid) { return ::kill(pid, 0) == 0; };
    pid_t pid = 0;
    {
        const auto child = Child::spawn({.argv = {"sleep", "60"}});
        pid = child.pid();
        CHECK(is_alive(pid));
    }
    CHECK(!is_alive(pid));

    const UniqueFd out{::memfd_create("pid", 0)};
    const pid_t parent = ::fork();
    if (parent == 0) {
        static auto child = Child::spawn({.argv = {"sleep", "60"}});
        const pid_t number = child.pid();
        if (::write(out.get(), &number, sizeof number) != sizeof number) ::_exit(1);
        ::kill(::getpid(), SIGKILL);
    }
    ::waitpid(parent, nullptr, 0);
    pid_t grandchild = 0;
    REQUIRE(::pread(out.get(), &grandchild, sizeof grandchild, 0) == sizeof grandchild);
    for (int i = 0; i < 200 && is_alive(grandchild); ++i) ::usleep(10'000);
    CHECK(!is_alive(grandchild));
}

TEST_CASE("waiting without blocking") {
    boost::asio::io_context context;
    auto child = Child::spawn({.argv = {"sh", "-c", "exit 7"}});
    int code = -1;
    boost::asio::co_spawn(
        context, [&]() -> boost::asio::awaitable<void> { code = (co_await child.wait()).code; },
        boost::asio::detached);
    context.run_for(std::chrono::seconds{20});
    CHECK(code == 7);
}
