#include "qmp/message.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <concepts>
#include <string>
#include <utility>
#include <vector>

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

template <typename Call>
std::error_code error_of(Call call) requires std::invocable<Call> {
    try {
        call();
    } catch (const std::system_error& e) {
        return e.code();
    }
    return {};
}

std::vector<boost::json::object> not_encodable() {
    boost::json::value deep;
    for (std::size_t i = 0; i < max_depth; ++i) deep = boost::json::array({deep});
    return {{{"file", "\xff\xfe"}}, {{"\xc0", 1}}, {{"a", deep}}};
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
    for (const auto& bad : not_encodable()) {
        CHECK(error_of([&] { encode_command(1, "blockdev-add", bad); }) == Errc::not_encodable);
        CHECK(error_of([&] { encode_return({}, bad); }) == Errc::not_encodable);
        CHECK(error_of([&] { encode_event({"X", bad}); }) == Errc::not_encodable);
    }
}

TEST_CASE("a request is read") {
    std::string problem = "of an earlier line";
    auto request = parse_request(R"({"execute": "a\u0000b", "id": [null, {"x": 1}]})", problem);
    CHECK(problem.empty());
    CHECK(request.command == std::string("a\0b", 3));
    CHECK(request.arguments.empty());
    CHECK(request.id == boost::json::parse(R"([null, {"x": 1}])"));

    request = parse_request(R"({"arguments": {"a": {"b": 1}}, "execute": "stop"})", problem);
    CHECK(request.arguments == boost::json::parse(R"({"a": {"b": 1}})").as_object());
    CHECK_FALSE(request.id);
    CHECK(parse_request(R"({"execute": "x", "id": null})", problem).id == boost::json::value());
}

TEST_CASE("what is no request, in QEMU's words") {
    using Case = std::pair<std::string, std::string>;
    const auto [line, expected] = GENERATE(
        Case("1", "QMP input must be a JSON object"),
        Case("[{\"execute\": \"x\"}]", "QMP input must be a JSON object"),
        Case("{}", "QMP input lacks member 'execute'"),
        Case(R"({"id": 1})", "QMP input lacks member 'execute'"),
        Case(R"({"execute": 1})", "QMP input member 'execute' must be a string"),
        Case(R"({"execute": "x", "arguments": []})",
             "QMP input member 'arguments' must be an object"),
        Case(R"({"execute": "x", "arguments": null})",
             "QMP input member 'arguments' must be an object"),
        Case(R"({"exec-oob": "x"})", "QMP input member 'exec-oob' is unexpected"),
        Case(R"({"execute": "x", "control": {}})", "QMP input member 'control' is unexpected"),
        Case("{", "JSON parse error, incomplete JSON"),
        Case("{\"execute\": \"\xff\"}", "JSON parse error, syntax error"),
        Case(nested(max_depth), "JSON parse error, too deep"));
    INFO(line);
    std::string problem;
    parse_request(line, problem);
    CHECK(problem == expected);
}

TEST_CASE("the id of what is no request, wherever it stands") {
    std::string problem;
    CHECK(parse_request(R"({"a": 1, "id": 7})", problem).id == 7);
    CHECK(parse_request(R"({"id": 7, "a": 1})", problem).id == 7);
    CHECK_FALSE(parse_request(R"({"id": 7)", problem).id);
}

TEST_CASE("what a server says is what a client reads") {
    const auto hello =
        std::get<Greeting>(parse(encode_greeting({7, 2, 22, "Debian \"1:7.2\"", {"oob", "x"}})));
    CHECK(hello.major == 7);
    CHECK(hello.minor == 2);
    CHECK(hello.micro == 22);
    CHECK(hello.package == "Debian \"1:7.2\"");
    CHECK(hello.capabilities == std::vector<std::string>{"oob", "x"});

    const auto value = std::get<Return>(parse(encode_return(7, {{"a", "\n"}})));
    CHECK(value.id == 7);
    CHECK(value.value == boost::json::value{{"a", "\n"}});

    const auto error = std::get<ErrorReply>(parse(encode_error(8, "DeviceNotFound", "no 'x'")));
    CHECK(error.id == 8);
    CHECK(error.error_class == "DeviceNotFound");
    CHECK(error.desc == "no 'x'");

    const auto event = std::get<Event>(parse(encode_event({"STOP", {{"a", 1}}, 12, 34})));
    CHECK(event.name == "STOP");
    CHECK(event.data == boost::json::object({{"a", 1}}));
    CHECK(event.seconds == 12);
    CHECK(event.microseconds == 34);
}

TEST_CASE("a server's lines, to the letter") {
    CHECK(encode_return({}, boost::json::object()) == "{\"return\":{}}\n");
    CHECK(encode_return(boost::json::value(), 1) == "{\"return\":1,\"id\":null}\n");
    CHECK(encode_error({}, "GenericError", "no") ==
          R"({"error":{"class":"GenericError","desc":"no"}})"
          "\n");
    CHECK(encode_event({"STOP", {}}) ==
          R"({"timestamp":{"seconds":-1,"microseconds":-1},"event":"STOP"})"
          "\n");
    CHECK(encode_greeting({}) ==
          R"({"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":0},"package":""},)"
          R"("capabilities":[]}})"
          "\n");
}

TEST_CASE("an error can be told whatever its text") {
    CHECK(encode_error({}, "GenericError", "no '\xff\xc3\xa4'") ==
          R"({"error":{"class":"GenericError","desc":"no '???'"}})"
          "\n");
    CHECK(encode_error({}, "GenericError", "\xc3\xa4") ==
          "{\"error\":{\"class\":\"GenericError\",\"desc\":\"\xc3\xa4\"}}\n");
    CHECK(std::get<Greeting>(parse(encode_greeting({7, 2, 0, "\xff", {"\xff"}}))).package == "?");
}
