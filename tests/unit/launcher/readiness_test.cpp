#include "launcher/readiness.h"

#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;
namespace asio = boost::asio;
using asio::awaitable;
using asio::use_awaitable;
using asio::ip::tcp;
using Stage = WaitForOption::Stage;

namespace {

std::vector<std::string> stages(const RunOptions& options) {
    std::vector<std::string> result;
    for (const auto& stage : stages_of(options)) result.push_back(to_string(stage));
    return result;
}

using Texts = std::vector<std::string>;

/// Readiness with a guest that cannot be reached, and what it said.
struct Watched {
    explicit Watched(const Texts& wanted) {
        std::vector<WaitForOption> options;
        for (const auto& text : wanted) options.push_back(parse_wait_for(text));
        readiness.start(options);
    }
    asio::io_context context;
    Texts said;
    Readiness readiness{context.get_executor(),
                        {},
                        {.reached = [this](const auto& stage) { said.push_back(to_string(stage)); },
                         .ready = [this] { said.push_back("ready"); },
                         .failed = [this](const auto& why) { said.push_back(why); }}};
};

}  // namespace

TEST_CASE("what is waited for follows from what was asked") {
    RunOptions options;
    CHECK(stages(options).empty());
    options.boot_timeout = std::chrono::seconds{1};
    CHECK(stages(options) == Texts{"agent"});
    options.wait_for = {parse_wait_for("tcp:80")};
    CHECK(stages(options) == Texts{"tcp:80"});
    options.command.emplace();
    CHECK(stages(options) == Texts{"tcp:80", "agent"});
    options.vm.user_data = "seed.yaml";
    CHECK(stages(options) == Texts{"tcp:80", "cloud-init", "agent"});
    options = {};
    options.wait_for = {parse_wait_for("cloud-init")};
    CHECK(stages(options) == Texts{"cloud-init", "agent"});
}

TEST_CASE("nobody waits for what cannot be seen") {
    const auto problem_of = [](const char* net, const char* stage, const char* publish) {
        RunOptions options;
        options.vm.net = parse_net(net);
        options.wait_for = {parse_wait_for(stage)};
        if (*publish != '\0') options.vm.publish = {parse_publish(publish)};
        try {
            check_wait_for(options);
        } catch (const Failure& failure) {
            return std::string{failure.what()};
        }
        return std::string{};
    };
    CHECK(problem_of("none", "ssh", "") ==
          "--wait-for ssh: a guest with --net none has no network");
    CHECK(problem_of("user", "tcp:80", "0:80").starts_with("--wait-for tcp:80: QEMU's user"));
    CHECK(problem_of("user", "ssh", "0:80").starts_with("--wait-for ssh: --net user has no way"));
    CHECK(problem_of("user", "ssh", "0:22") == "");
    CHECK(problem_of("isolated", "tcp:80", "") == "");
    CHECK(problem_of("none", "agent", "") == "");
}

TEST_CASE("a guest is ready when all stages are reached") {
    Watched watched{{"log:^login: $", "agent", "log:[0-9]+ ready"}};
    CHECK(watched.readiness.waits_for_agent());
    CHECK(watched.readiness.pending_text() ==
          "phase 'log:^login: $': no line of the console fitted");
    watched.readiness.take_line("x ready");
    watched.readiness.take_line("not login: ");
    CHECK(watched.said.empty());
    watched.readiness.take_line("12 ready, and more");
    watched.readiness.agent_is_up();
    CHECK(watched.said == Texts{"log:[0-9]+ ready", "agent"});
    CHECK_FALSE(watched.readiness.waits_for_agent());
    watched.readiness.take_line("login: ");
    CHECK(watched.said == Texts{"log:[0-9]+ ready", "agent", "log:^login: $", "ready"});
    watched.readiness.take_line("login: ");
    CHECK(watched.said.size() == 4);
    CHECK(watched.readiness.pending_text().empty());
}

TEST_CASE("a port is open when its server speaks") {
    asio::io_context context{1};
    const auto here = netns::Namespace::current();
    tcp::acceptor acceptor{context, {asio::ip::address_v4::loopback(), 0}};
    const auto endpoint = acceptor.local_endpoint();
    GuestPort silent{context.get_executor(), here, endpoint, "SSH-"};
    GuestPort open{context.get_executor(), here, endpoint, ""};

    const auto script = [&]() -> awaitable<void> {
        co_await open.until_open();
        auto first = co_await acceptor.async_accept(use_awaitable);
        auto second = co_await acceptor.async_accept(use_awaitable);
        // One that says something else, and one that says what it should.
        co_await asio::async_write(second, asio::buffer("HTTP/1.1 ", 9), use_awaitable);
        auto third = co_await acceptor.async_accept(use_awaitable);
        co_await asio::async_write(third, asio::buffer("SSH-2.0-x", 9), use_awaitable);
    };
    bool done = false;
    asio::co_spawn(context, script(), [](std::exception_ptr why) {
        if (why) std::rethrow_exception(why);
    });
    asio::co_spawn(context, silent.until_open(), [&](std::exception_ptr why) { done = !why; });
    context.run_for(std::chrono::seconds{60});
    CHECK(done);

    acceptor.close();
    GuestPort closed{context.get_executor(), here, endpoint, ""};
    CHECK(closed.problem() == "127.0.0.1 port " + std::to_string(endpoint.port()) + ": no answer");
    context.restart();
    asio::co_spawn(context, closed.until_open(), [](std::exception_ptr) {});
    for (int i = 0; i < 1000 && closed.problem().ends_with("no answer"); ++i)
        context.run_one_for(std::chrono::seconds{1});
    CHECK(closed.problem() ==
          "127.0.0.1 port " + std::to_string(endpoint.port()) + ": Connection refused");
}

TEST_CASE("stages are written as they are read") {
    for (const auto* text : {"agent", "ssh", "cloud-init", "tcp:443", "log:a|b:c"})
        CHECK(to_string(parse_wait_for(text)) == text);
    CHECK_THROWS_WITH(parse_wait_for("tcp:0"), "port 0 is not from 1 to 65535");
    CHECK_THROWS_WITH(parse_wait_for("tcp:x"), "'x' is not a port");
    CHECK_THROWS_WITH(parse_wait_for("log:"), "is nothing that can be waited for");
    CHECK_THROWS_WITH(parse_wait_for("log:("), Catch::StartsWith("is no regular expression: "));
    CHECK_THROWS_WITH(parse_wait_for("log:" + std::string(40000, '(') + std::string(40000, ')')),
                      "is too long for a regular expression");
}
