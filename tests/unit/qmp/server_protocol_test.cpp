#include "qmp/server_protocol.h"

#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <string>

#include "qmp/error.h"

using namespace qvm::qmp;
namespace json = boost::json;

namespace {

constexpr std::size_t max_line = 256;

const std::string negotiation = "{\"execute\":\"qmp_capabilities\"}\n";
const std::string done = "{\"return\":{}}\n";

std::string error(const std::string& error_class, const std::string& desc,
                  const std::string& id = {}) {
    return R"({"error":{"class":")" + error_class + R"(","desc":")" + desc + "\"}" +
           (id.empty() ? "" : ",\"id\":" + id) + "}\n";
}

// Past the greeting.
ServerProtocol greeted() {
    ServerProtocol protocol({7, 2, 22, "x", {"oob"}}, max_line);
    protocol.take_output();
    return protocol;
}

ServerProtocol ready() {
    auto protocol = greeted();
    protocol.feed(negotiation);
    REQUIRE_FALSE(protocol.next_request());
    REQUIRE(protocol.take_output() == done);
    return protocol;
}

// What is answered to lines none of which is a command to be carried out.
std::string answer(ServerProtocol& protocol, const std::string& lines) {
    protocol.feed(lines);
    REQUIRE_FALSE(protocol.next_request());
    return protocol.take_output();
}

std::string next_command(ServerProtocol& protocol) {
    const auto request = protocol.next_request();
    return request ? request->command : "";
}

}  // namespace

TEST_CASE("server: the greeting comes first and offers nothing") {
    ServerProtocol protocol({7, 2, 22, "x", {"oob"}});
    CHECK(protocol.take_output() ==
          R"({"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":"x"},)"
          R"("capabilities":[]}})"
          "\n");
    CHECK(protocol.state() == ServerState::negotiating);
}

TEST_CASE("server: nothing but negotiation before the negotiation") {
    auto protocol = greeted();
    const auto expecting = "Expecting capabilities negotiation with 'qmp_capabilities'";
    CHECK(answer(protocol, "{\"execute\":\"stop\",\"id\":1}\n") ==
          error("CommandNotFound", expecting, "1"));
    protocol.event({"STOP", {}});
    CHECK(protocol.take_output().empty());
    CHECK(answer(protocol, "{\"execute\":\"qmp_capabilities\",\"id\":\"x\"}\n") ==
          "{\"return\":{},\"id\":\"x\"}\n");
    CHECK(protocol.state() == ServerState::ready);
}

TEST_CASE("server: there is one negotiation") {
    auto protocol = ready();
    CHECK(
        answer(protocol, negotiation) ==
        error("CommandNotFound", "Capabilities negotiation is already complete, command ignored"));
    CHECK(protocol.state() == ServerState::ready);
}

TEST_CASE("server: what can be negotiated") {
    auto protocol = greeted();
    const auto negotiate = [&](const std::string& arguments) {
        return answer(protocol,
                      "{\"execute\":\"qmp_capabilities\",\"arguments\":" + arguments + "}\n");
    };
    CHECK(negotiate(R"({"enable":["oob"]})") ==
          error("GenericError", "Capability \\\"oob\\\" not available"));
    CHECK(negotiate(R"({"enable":[[]]})") == error("GenericError", "Capability [] not available"));
    CHECK(negotiate(R"({"enable":"oob"})") ==
          error("GenericError", "Invalid parameter type for 'enable', expected: array"));
    CHECK(negotiate(R"({"x":1})") == error("GenericError", "Parameter 'x' is unexpected"));
    CHECK(protocol.state() == ServerState::negotiating);
    CHECK(negotiate(R"({"enable":[]})") == done);
}

TEST_CASE("server: a command and its answer") {
    auto protocol = ready();
    protocol.feed("{\"execute\":\"query-status\",\"arguments\":{\"a\":1},\"id\":5}\r\n");
    const auto request = protocol.next_request();
    REQUIRE(request);
    CHECK(request->command == "query-status");
    CHECK(request->arguments == json::object({{"a", 1}}));
    CHECK(request->id == 5);
    CHECK(protocol.take_output().empty());
    protocol.reply(request->id, {{"status", "running"}});
    CHECK(protocol.take_output() == "{\"return\":{\"status\":\"running\"},\"id\":5}\n");
    protocol.refuse(request->id, "DeviceNotFound", "no");
    CHECK(protocol.take_output() == error("DeviceNotFound", "no", "5"));
}

TEST_CASE("server: commands are given out in order, with the answers to nonsense in its place") {
    auto protocol = ready();
    protocol.feed("{\"execute\":\"a\"}\n1\n{\"execute\":\"b\"}\n{\"execute\":\"c");
    CHECK(next_command(protocol) == "a");
    CHECK(protocol.take_output().empty());
    CHECK(next_command(protocol) == "b");
    CHECK(protocol.take_output() == error("GenericError", "QMP input must be a JSON object"));
    CHECK(next_command(protocol).empty());
    protocol.feed("\"}\n");
    CHECK(next_command(protocol) == "c");
}

TEST_CASE("server: an id is repeated whatever it is") {
    auto protocol = ready();
    const std::string id = GENERATE("0", "-1", "18446744073709551615", "\"x\"", "\"\\u0001\\\"\"",
                                    "null", "true", "[]", R"({"b":{"a":[1,null]},"a":""})");
    protocol.feed("{\"execute\":\"x\",\"id\":" + id + "}\n");
    const auto request = protocol.next_request();
    REQUIRE(request);
    protocol.reply(request->id, 1);
    CHECK(protocol.take_output() == "{\"return\":1,\"id\":" + id + "}\n");
    CHECK(answer(protocol, "{\"id\":" + id + "}\n") ==
          error("GenericError", "QMP input lacks member 'execute'", id));
}

TEST_CASE("server: nonsense is answered, and the connection goes on") {
    auto protocol = GENERATE(true, false) ? ready() : greeted();
    const auto state = protocol.state();
    const std::string line = GENERATE(as<std::string>(), "x", "{", "[]", "{} {}", "\xff",
                                      "{\"execute\"", std::string(200, '['), std::string(1, '\0'));
    CHECK(answer(protocol, line + "\n").starts_with(R"({"error":{"class":"GenericError",)"));
    CHECK(protocol.state() == state);
    CHECK(protocol.wants_input());
}

TEST_CASE("server: blank lines mean nothing") {
    auto protocol = ready();
    CHECK(answer(protocol, "\n\r\n \t \r\n\n").empty());
}

TEST_CASE("server: a line that is too long ends the connection, after all before it") {
    auto protocol = ready();
    const bool finished = GENERATE(true, false);
    protocol.feed("{\"execute\":\"a\"}\n");
    protocol.feed(std::string(max_line + 1, ' '));
    if (finished) protocol.feed("\n{\"execute\":\"b\"}\n");
    CHECK_FALSE(protocol.wants_input());
    CHECK(next_command(protocol) == "a");
    protocol.reply({}, 1);
    CHECK(protocol.state() == ServerState::ready);
    CHECK(next_command(protocol).empty());
    CHECK(protocol.state() == ServerState::closing);
    CHECK(protocol.take_output() ==
          "{\"return\":1}\n" + error("GenericError", "QMP input line is too long"));

    protocol.feed("\n{\"execute\":\"b\"}\n");
    protocol.event({"STOP", {}});
    CHECK(next_command(protocol).empty());
    CHECK(protocol.take_output().empty());
    CHECK_FALSE(protocol.wants_input());
}

TEST_CASE("server: a line as long as the cap") {
    auto protocol = ready();
    const std::string command = "{\"execute\":\"a\"}";
    protocol.feed(command + std::string(max_line - command.size(), ' '));
    CHECK(protocol.wants_input());
    CHECK(next_command(protocol).empty());
    protocol.feed("\n");
    CHECK(next_command(protocol) == "a");
}

TEST_CASE("server: no more is read while a cap's worth of requests waits") {
    auto protocol = ready();
    for (int i = 0; i < 20; ++i) protocol.feed("{\"execute\":\"a\"}\n");
    CHECK_FALSE(protocol.wants_input());
    for (int i = 0; i < 20; ++i) CHECK(next_command(protocol) == "a");
    CHECK(protocol.wants_input());
}

TEST_CASE("server: answers to nonsense that nobody takes are bounded") {
    auto protocol = ready();
    for (int i = 0; i < 10000; ++i) protocol.feed("x\n");
    std::size_t answers = 0;
    for (;;) {
        CHECK_FALSE(protocol.next_request());
        const auto output = protocol.take_output();
        if (output.empty()) break;
        CHECK(output.size() < ServerProtocol::max_output + 1000);
        for (const char c : output) answers += c == '\n';
    }
    CHECK(answers == 10000);
}

TEST_CASE("server: no further command while the output is not taken") {
    auto protocol = ready();
    protocol.feed("{\"execute\":\"a\"}\n{\"execute\":\"b\"}\n");
    CHECK(next_command(protocol) == "a");
    protocol.reply({}, json::string(ServerProtocol::max_output, 'x'));
    CHECK(next_command(protocol).empty());
    protocol.take_output();
    CHECK(next_command(protocol) == "b");
}

TEST_CASE("server: an event") {
    auto protocol = ready();
    protocol.event({"POWERDOWN", {}, 12, 34});
    protocol.event({"SHUTDOWN", {{"guest", true}}});
    CHECK(protocol.take_output() ==
          R"({"timestamp":{"seconds":12,"microseconds":34},"event":"POWERDOWN"})"
          "\n"
          R"({"timestamp":{"seconds":-1,"microseconds":-1},"event":"SHUTDOWN",)"
          R"("data":{"guest":true}})"
          "\n");
    CHECK_THROWS_AS(protocol.event({"X", {{"a", "\xff"}}}), std::system_error);
    CHECK(protocol.take_output().empty());
}

TEST_CASE("server: events that nobody takes are bounded") {
    auto protocol = ready();
    const Event event{"X", {{"text", std::string(1000, 'x')}}};
    protocol.reply({}, json::string(2 * ServerProtocol::max_events, 'x'));  // does not count
    for (std::size_t i = 0; i < ServerProtocol::max_events / 1100; ++i) protocol.event(event);
    CHECK(protocol.state() == ServerState::ready);
    protocol.take_output();
    for (std::size_t i = 0; i < ServerProtocol::max_events / 1000; ++i) protocol.event(event);
    CHECK(protocol.state() == ServerState::overrun);
    CHECK(protocol.take_output().size() <= ServerProtocol::max_events);
    CHECK_FALSE(protocol.wants_input());
}

TEST_CASE("server: an answer that is no JSON becomes a refusal") {
    auto protocol = ready();
    protocol.reply(7, "\xff");
    CHECK(protocol.take_output() ==
          error("GenericError", "The answer cannot be written as JSON", "7"));
    protocol.refuse(7, "GenericError", "\xff");
    CHECK(protocol.take_output() == error("GenericError", "?", "7"));
}
