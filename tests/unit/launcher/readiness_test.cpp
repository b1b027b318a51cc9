#include "launcher/readiness.h"

#include <sys/socket.h>

#include <array>
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
    GuestPorts ports{context.get_executor(), {}};
    Readiness readiness{context.get_executor(),
                        ports,
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

namespace {

/// Ports that are all one of this host's, whose server is the test's.
struct Served {
    asio::io_context context{1};
    netns::Namespace here = netns::Namespace::current();
    tcp::acceptor acceptor{context, {asio::ip::address_v4::loopback(), 0}};
    tcp::endpoint endpoint = acceptor.local_endpoint();
    GuestPorts ports{context.get_executor(),
                     {.space = [this]() -> const netns::Namespace& { return here; },
                      .endpoint = [this](std::uint16_t) { return endpoint; }}};
    const WaitForOption ssh = parse_wait_for("ssh");

    /// How many of `waiting` have come to an end after `script`, and all that is ready then.
    int run(awaitable<void> script, int waiting) {
        int opened = 0;
        std::exception_ptr failure;
        for (int i = 0; i < waiting; ++i)
            asio::co_spawn(context, ports.until_open(ssh), [&](std::exception_ptr why) {
                if (!why && ++opened == waiting) context.stop();
            });
        asio::co_spawn(context, std::move(script), [&](std::exception_ptr why) { failure = why; });
        context.restart();
        context.run_for(std::chrono::seconds{60});
        if (failure) std::rethrow_exception(failure);
        return opened;
    }

    /// One that says something else, and one that says what it should.
    awaitable<void> serve() {
        const std::array<std::string_view, 2> banners = {"HTTP/1.1 ", "SSH-2.0-x"};
        for (const auto said : banners) {
            auto socket = co_await acceptor.async_accept(use_awaitable);
            co_await asio::async_write(socket, asio::buffer(said), use_awaitable);
        }
    }

    static awaitable<void> nothing() { co_return; }
};

}  // namespace

TEST_CASE("one connection tries a port for all who wait, until its server says who it is") {
    Served served;
    CHECK(served.ports.problem(served.ssh) == "was not tried");
    CHECK(served.run(served.serve(), 5) == 5);
    // Nobody has tried more than that, nor does who comes now.
    CHECK(served.run(Served::nothing(), 3) == 3);
    served.acceptor.non_blocking(true);
    boost::system::error_code none;
    tcp::socket socket{served.context};
    served.acceptor.accept(socket, none);
    CHECK(none == asio::error::would_block);

    served.ports.guest_restarts();
    served.acceptor.non_blocking(false);
    CHECK(served.run(served.serve(), 1) == 1);
}

TEST_CASE("a port says why it is not open") {
    Served served;
    served.acceptor.close();
    asio::co_spawn(served.context, served.ports.until_open(served.ssh), [](std::exception_ptr) {});
    const auto text = "127.0.0.1 port " + std::to_string(served.endpoint.port()) + ": ";
    for (int i = 0; i < 1000 && !served.ports.problem(served.ssh).ends_with("refused"); ++i)
        served.context.run_one_for(std::chrono::seconds{1});
    CHECK(served.ports.problem(served.ssh) == text + "Connection refused");
}

TEST_CASE("where a guest's port is reached") {
    using Mode = NetOption::Mode;
    const auto address = asio::ip::make_address_v4("192.168.26.10");
    const std::vector<PublishOption> published{parse_publish("[::1]:1:22"),
                                               parse_publish("2:22/udp"), parse_publish("3:22")};
    CHECK(guest_endpoint(Mode::isolated, address, {}, 22) == tcp::endpoint{address, 22});
    CHECK(guest_endpoint(Mode::user, {}, published, 22) ==
          tcp::endpoint{asio::ip::address_v4::loopback(), 3});
    CHECK_THROWS_WITH(guest_endpoint(Mode::user, {}, published, 80),
                      "--net user has no way to the guest's port 80");
    CHECK_THROWS_WITH(guest_endpoint(Mode::none, {}, published, 22),
                      "a guest with --net none has no network");
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
