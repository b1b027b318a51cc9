#include "qmp/message.h"

#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <string>

#include "qmp/error.h"

using namespace qvm::qmp;

namespace {

Message parse(std::string_view line) {
    std::error_code error;
    auto message = parse_message(line, error);
    INFO(line);
    REQUIRE_FALSE(error);
    return message;
}

std::error_code error_of(std::string_view line) {
    std::error_code error;
    parse_message(line, error);
    return error;
}

std::string nested(std::size_t depth) {
    return R"({"return":)" + std::string(depth, '[') + std::string(depth, ']') + "}";
}

}  // namespace

TEST_CASE("a greeting") {
    const auto greeting = std::get<Greeting>(
        parse(R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},)"
              R"("package": "Debian"}, "capabilities": ["oob", 7, "new"]}})"
              "\r"));
    CHECK(greeting.major == 7);
    CHECK(greeting.minor == 2);
    CHECK(greeting.micro == 22);
    CHECK(greeting.package == "Debian");
    CHECK(greeting.capabilities == std::vector<std::string>{"oob", "new"});
}

TEST_CASE("a greeting without package and capabilities") {
    const auto greeting = std::get<Greeting>(
        parse(R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}}}})"));
    CHECK(greeting.major == 9);
    CHECK(greeting.package.empty());
    CHECK(greeting.capabilities.empty());
}

TEST_CASE("a return keeps its value") {
    const auto reply = std::get<Return>(
        parse(R"({"return": {"a": [1, 18446744073709551615, null]}, "id": 9007199254740993})"));
    CHECK(reply.id == 9007199254740993u);
    CHECK(boost::json::serialize(reply.value) == R"({"a":[1,18446744073709551615,null]})");
}

TEST_CASE("an id that we cannot have sent is no id") {
    const std::string id =
        GENERATE("\"1\"", "-1", "1.0", "null", "[1]", "1e3", "18446744073709551616");
    CHECK(std::get<Return>(parse(R"({"return":{},"id":)" + id + "}")).id == std::nullopt);
    CHECK(std::get<Return>(parse(R"({"return":{}})")).id == std::nullopt);
}

TEST_CASE("an error") {
    const auto reply = std::get<ErrorReply>(
        parse(R"({"id": 3, "error": {"class": "CommandNotFound", "desc": "no \u00fc"}})"));
    CHECK(reply.id == 3u);
    CHECK(reply.error_class == "CommandNotFound");
    CHECK(reply.desc == "no \u00fc");
}

TEST_CASE("an event") {
    const auto event =
        std::get<Event>(parse(R"({"timestamp": {"seconds": 1258551470, "microseconds": 802384},)"
                              R"("event": "POWERDOWN", "data": {"guest": true}})"));
    CHECK(event.name == "POWERDOWN");
    CHECK(event.data.at("guest").as_bool());
    CHECK(event.seconds == 1258551470);
    CHECK(event.microseconds == 802384);
}

TEST_CASE("an event without data and time") {
    const auto event = std::get<Event>(parse(R"({"event": "STOP"})"));
    CHECK(event.name == "STOP");
    CHECK(event.data.empty());
    CHECK(event.seconds == -1);
    CHECK(event.microseconds == -1);
}

TEST_CASE("what is not JSON") {
    const std::string line =
        GENERATE("", " ", "\r", "{", "}", "{\"return\":", "{\"return\":{}} x", "nul", "'a'",
                 "{\"return\":\"\xff\"}", "\xff", "{\"a\":1,}", "{\"a\" 1}", "\"\\ud800\"");
    INFO(line);
    CHECK(error_of(line) == Errc::bad_json);
}

TEST_CASE("what is JSON, but no message") {
    const std::string line = GENERATE(
        "1", "null", "[]", "\"return\"", "{}", R"({"returns": 1})", R"({"error": "text"})",
        R"({"error": {"class": "GenericError"}})", R"({"error": {"class": 1, "desc": "x"}})",
        R"({"event": 1})", R"({"event": "STOP", "data": []})", R"({"QMP": {}})", R"({"QMP": []})",
        R"({"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}})",
        R"({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": "0"}}}})",
        R"({"QMP": {"version": {"qemu": {"major": 99999999999, "minor": 2, "micro": 0}}}})");
    INFO(line);
    CHECK(error_of(line) == Errc::bad_message);
}

TEST_CASE("nesting is bounded") {
    CHECK_FALSE(error_of(nested(max_depth - 1)));
    CHECK(error_of(nested(max_depth)) == Errc::bad_json);
    CHECK(error_of(std::string(1'000'000, '[')) == Errc::bad_json);
}

TEST_CASE("a command is one line") {
    CHECK(encode_command(7, "stop", {}) == "{\"execute\":\"stop\",\"id\":7}\n");
    CHECK(encode_command(8, "x", {{"text", "a\nb\"\x01"}, {"n", 1}}) ==
          R"({"execute":"x","arguments":{"text":"a\nb\"\u0001","n":1},"id":8})"
          "\n");
}

TEST_CASE("a command that QEMU could not parse is refused here") {
    boost::json::value deep;
    for (std::size_t i = 0; i < max_depth; ++i) deep = boost::json::array({deep});
    const boost::json::object arguments[] = {{{"file", "\xff\xfe"}}, {{"\xc0", 1}}, {{"a", deep}}};
    for (const auto& bad : arguments) {
        std::error_code error;
        try {
            encode_command(1, "blockdev-add", bad);
        } catch (const std::system_error& e) {
            error = e.code();
        }
        CHECK(error == Errc::not_encodable);
    }
}
