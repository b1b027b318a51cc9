#include "launcher/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>

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
