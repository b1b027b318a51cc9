#include "launcher/control.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "qmp/error.h"

using namespace qvm;
namespace json = boost::json;

namespace {

/// Remembers what it was asked for.
struct Fake final : Controlled {
    Answer answer(std::string what) {
        asked = what;
        co_return json::value(what);
    }
    Answer stop(std::chrono::milliseconds t) override {
        return answer("stop " + std::to_string(t.count()));
    }
    Answer kill() override { return answer("kill"); }
    Answer wait() override { return answer("wait"); }
    Answer restart(std::chrono::milliseconds t) override {
        return answer("restart " + std::to_string(t.count()));
    }
    Answer wait_for(std::string stage) override { return answer("wait-for " + stage); }
    Answer save(std::string directory) override { return answer("save " + directory); }
    json::value inspect() override { return "inspect"; }
    std::size_t console_clients() override { return 3; }
    Answer resize_console(unsigned rows, unsigned columns) override {
        return answer("resize " + std::to_string(rows) + " " + std::to_string(columns));
    }
    Answer pass_through(std::string command, json::object arguments) override {
        return answer("qemu " + command + " " + json::serialize(arguments));
    }
    std::string asked;
};

/// What the command came to, or "CLASS: DESC" of its refusal.
std::string outcome_of(const std::string& command, const char* arguments = "{}") {
    Fake vm;
    boost::asio::io_context context;
    std::string result;
    qmp::Request request{{}, command, json::parse(arguments).as_object()};
    boost::asio::co_spawn(context, carry_out(vm, std::move(request)),
                          [&](const std::exception_ptr& failure, const json::value& value) {
                              try {
                                  if (failure) std::rethrow_exception(failure);
                                  result = json::serialize(value);
                              } catch (const qmp::CommandError& error) {
                                  result = error.error_class + ": " + error.desc;
                              }
                          });
    context.run();
    return result;
}

}  // namespace

TEST_CASE("qvm-* is ours, everything else QEMU's") {
    CHECK(outcome_of("qvm-stop") == R"("stop 10000")");
    CHECK(outcome_of("qvm-stop", R"({"timeout":0})") == R"("stop 0")");
    CHECK(outcome_of("qvm-stop", R"({"timeout":1.5})") == R"("stop 1500")");
    CHECK(outcome_of("qvm-restart", R"({"timeout":2})") == R"("restart 2000")");
    CHECK(outcome_of("qvm-kill") == R"("kill")");
    CHECK(outcome_of("qvm-wait") == R"("wait")");
    CHECK(outcome_of("qvm-save", R"({"directory":"/d"})") == R"("save /d")");
    CHECK(outcome_of("qvm-inspect") == R"("inspect")");
    CHECK(outcome_of("qvm-query-console") == R"({"attached":3})");
    CHECK(outcome_of("qvm-resize-console", R"({"rows":24,"columns":80})") == R"("resize 24 80")");
    CHECK(outcome_of("query-status") == R"("qemu query-status {}")");
    CHECK(outcome_of("stop", R"({"a":1})") == R"("qemu stop {\"a\":1}")");
}

TEST_CASE("what is none, or wrong, is refused in QMP's words") {
    CHECK(outcome_of("qvm-fly") == "CommandNotFound: The command qvm-fly has not been found");
    CHECK(outcome_of("qvm-stop", R"({"timeout":"soon"})") ==
          "GenericError: Invalid parameter type for 'timeout', expected: number");
    CHECK(outcome_of("qvm-stop", R"({"timeout":-1})").starts_with("GenericError: Parameter"));
    CHECK(outcome_of("qvm-stop", R"({"timeout":1e300})").starts_with("GenericError: Parameter"));
    CHECK(outcome_of("qvm-resize-console", R"({"rows":70000})").starts_with("GenericError"));
}
