#include "qmp/protocol.h"

#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <string>

#include "qmp/error.h"

using namespace qvm::qmp;

namespace {

const std::string greeting =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},)"
    R"("capabilities": ["oob"]}})"
    "\r\n";
const std::string negotiated = "{\"return\": {}, \"id\": 0}\r\n";
const std::string capabilities = "{\"execute\":\"qmp_capabilities\",\"id\":0}\n";

constexpr std::uint64_t sync_id = 77;
const std::string sync_request =
    "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":77},\"id\":77}\n";
const std::string sync_reply = "\xff{\"return\": 77, \"id\": 77}\n";

std::string reply(std::uint64_t id, const std::string& value = "{}") {
    return "{\"return\": " + value + ", \"id\": " + std::to_string(id) + "}\r\n";
}

std::string event(const std::string& name) {
    return "{\"event\": \"" + name + "\"}\r\n";
}

std::string show(const Outcome& outcome) {
    if (const auto* refusal = std::get_if<ErrorReply>(&outcome))
        return refusal->error_class + ": " + refusal->desc;
    if (const auto* error = std::get_if<std::error_code>(&outcome)) return error->message();
    return boost::json::serialize(std::get<boost::json::value>(outcome));
}

// Everything that has ended since the last time, as "ID=OUTCOME ...".
std::string completed(Protocol& protocol) {
    std::string text;
    for (const auto& [id, outcome] : protocol.take_completions()) {
        if (!text.empty()) text += ' ';
        text += std::to_string(id) + "=" + show(outcome);
    }
    return text;
}

std::string events(Protocol& protocol) {
    std::string text;
    while (const auto event = protocol.next_event()) {
        if (!text.empty()) text += ' ';
        text += event->name;
    }
    return text;
}

std::string message(Errc code) {
    return make_error_code(code).message();
}

// Past the handshake, which is call 1.
Protocol ready(Dialect dialect = Dialect::qmp, std::size_t max_line = default_max_line) {
    Protocol protocol(dialect, max_line);
    protocol.start(sync_id);
    protocol.feed(dialect == Dialect::qmp ? greeting + negotiated : sync_reply);
    REQUIRE(protocol.state() == State::ready);
    protocol.take_output();
    protocol.take_completions();
    return protocol;
}

template <typename F>
std::error_code error_of(F f) {
    try {
        f();
    } catch (const std::system_error& e) {
        return e.code();
    }
    return {};
}

}  // namespace

TEST_CASE("qmp: the handshake step by step") {
    Protocol protocol(Dialect::qmp);
    const auto id = protocol.start(0);
    CHECK(protocol.state() == State::awaiting_greeting);
    CHECK(protocol.take_output().empty());
    CHECK(error_of([&] { protocol.submit("stop", {}); }) == Errc::not_ready);

    protocol.feed(greeting);
    CHECK(protocol.state() == State::negotiating);
    CHECK(protocol.take_output() == capabilities);
    CHECK(protocol.greeting()->major == 7);
    CHECK(error_of([&] { protocol.submit("stop", {}); }) == Errc::not_ready);
    CHECK(completed(protocol).empty());

    protocol.feed(negotiated);
    CHECK(protocol.state() == State::ready);
    CHECK(completed(protocol) == std::to_string(id) + "=null");
    CHECK_FALSE(protocol.error());
}

TEST_CASE("qmp: nothing is sent before the handshake is asked for") {
    Protocol protocol(Dialect::qmp);
    protocol.feed(greeting);
    CHECK(protocol.take_output().empty());
    protocol.start(0);
    CHECK(protocol.take_output() == capabilities);
}

TEST_CASE("qmp: a handshake that was abandoned can be repeated") {
    Protocol protocol(Dialect::qmp);
    protocol.abandon(protocol.start(0));
    protocol.feed(greeting);
    CHECK(protocol.take_output() == capabilities);
    const auto second = protocol.start(0);
    CHECK(protocol.take_output().empty());
    protocol.feed(negotiated);
    CHECK(completed(protocol) == std::to_string(second) + "=null");
    const auto third = protocol.start(0);
    CHECK(completed(protocol) == std::to_string(third) + "=null");
    CHECK(protocol.take_output().empty());
}

TEST_CASE("a second handshake fails the first") {
    Protocol protocol(GENERATE(Dialect::qmp, Dialect::guest_agent));
    const auto first = protocol.start(1);
    protocol.start(2);
    CHECK(completed(protocol) == std::to_string(first) + "=" + message(Errc::not_ready));
}

TEST_CASE("qmp: a refused handshake closes, with the peer's words") {
    Protocol protocol(Dialect::qmp);
    protocol.start(0);
    protocol.feed(greeting + R"({"id": 0, "error": {"class": "GenericError", "desc": "no"}})"
                             "\n");
    CHECK(completed(protocol) == "1=GenericError: no");
    CHECK(protocol.error() == Errc::handshake_refused);
    protocol.start(0);
    CHECK(completed(protocol) == "2=" + message(Errc::handshake_refused));
}

TEST_CASE("qmp: messages out of turn close") {
    const std::string input =
        GENERATE(as<std::string>(), event("STOP"), negotiated, greeting + greeting,
                 greeting + negotiated + greeting,
                 std::string(R"({"error": {"class": "GenericError", "desc": "no"}})") + "\n");
    Protocol protocol(Dialect::qmp);
    protocol.start(0);
    protocol.feed(input);
    CHECK(protocol.error() == Errc::unexpected_message);
}

TEST_CASE("qmp: the same comes out wherever the input is cut") {
    const std::string input = event("STOP") + reply(3, "\"\u00fc\"") + event("RESUME") +
                              R"({"id": 2, "error": {"class": "GenericError", "desc": "no"}})" +
                              "\r\n" + reply(4) + "{\"event\": \"SHUT";
    for (std::size_t first = 0; first <= input.size(); ++first)
        for (const std::size_t step : {std::size_t{1}, std::size_t{7}, input.size()}) {
            auto protocol = ready();
            for (int i = 0; i < 3; ++i) protocol.submit("x", {});
            protocol.feed(input.substr(0, first));
            for (auto at = first; at < input.size(); at += step)
                protocol.feed(input.substr(at, step));
            REQUIRE(completed(protocol) == "3=\"\u00fc\" 2=GenericError: no 4={}");
            REQUIRE(events(protocol) == "STOP RESUME");
        }
}

TEST_CASE("qmp: the handshake in single bytes") {
    Protocol protocol(Dialect::qmp);
    protocol.start(0);
    for (const char byte : greeting + negotiated) {
        CHECK(protocol.state() != State::ready);
        protocol.feed({&byte, 1});
    }
    CHECK(protocol.state() == State::ready);
}

TEST_CASE("commands are sent in order, each with its own id") {
    auto protocol = ready(GENERATE(Dialect::qmp, Dialect::guest_agent));
    CHECK(protocol.submit("a", {}) == 2);
    CHECK(protocol.submit("b", {{"n", 1}}) == 3);
    CHECK(protocol.take_output() ==
          "{\"execute\":\"a\",\"id\":2}\n{\"execute\":\"b\",\"arguments\":{\"n\":1},\"id\":3}\n");
    CHECK(protocol.take_output().empty());
}

TEST_CASE("a command that cannot be encoded leaves nothing behind") {
    auto protocol = ready();
    CHECK(error_of([&] { protocol.submit("a", {{"x", "\xff"}}); }) == Errc::not_encodable);
    CHECK(protocol.take_output().empty());
    protocol.close(Errc::disconnected);
    CHECK(completed(protocol).empty());
}

TEST_CASE("answers that nobody waits for are dropped") {
    auto protocol = ready(GENERATE(Dialect::qmp, Dialect::guest_agent));
    const auto abandoned = protocol.submit("a", {});
    const auto kept = protocol.submit("b", {});
    protocol.abandon(abandoned);
    protocol.feed(reply(abandoned) + reply(999) + reply(1) + reply(0) + "{\"return\": {}}\n");
    protocol.feed("{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n");
    CHECK(completed(protocol).empty());
    protocol.feed(reply(kept, "1") + reply(kept, "2"));
    CHECK(completed(protocol) == "3=1");
    CHECK(protocol.state() == State::ready);
}

TEST_CASE("the end of input fails every pending call and keeps the events") {
    auto protocol = ready();
    protocol.submit("a", {});
    protocol.submit("b", {});
    protocol.submit("c", {});
    protocol.feed(event("STOP") + reply(3) + event("SHUTDOWN"));
    protocol.close(Errc::disconnected);
    const auto why = message(Errc::disconnected);
    CHECK(completed(protocol) == "3={} 2=" + why + " 4=" + why);
    CHECK(protocol.state() == State::closed);
    CHECK(events(protocol) == "STOP SHUTDOWN");
    CHECK(error_of([&] { protocol.submit("d", {}); }) == Errc::disconnected);

    protocol.close(Errc::closed);
    protocol.feed(event("RESUME"));
    CHECK(protocol.error() == Errc::disconnected);
    CHECK(events(protocol).empty());
    CHECK(completed(protocol).empty());
}

TEST_CASE("the end of input fails the handshake") {
    Protocol protocol(GENERATE(Dialect::qmp, Dialect::guest_agent));
    protocol.start(1);
    protocol.close(Errc::disconnected);
    CHECK(completed(protocol) == "1=" + message(Errc::disconnected));
}

TEST_CASE("qmp: malformed lines close and fail what is pending") {
    const auto [input, code] = GENERATE(table<std::string, Errc>({
        {"nonsense\n", Errc::bad_json},
        {"\n", Errc::bad_json},
        {"{\"return\": {}\n", Errc::bad_json},
        {"\xff\n", Errc::bad_json},
        {std::string(1, '\0') + "\n", Errc::bad_json},
        {"{}\n", Errc::bad_message},
        {"[1]\n", Errc::bad_message},
    }));
    auto protocol = ready();
    protocol.submit("a", {});
    protocol.feed(event("STOP") + input + reply(2) + event("RESUME"));
    CHECK(protocol.error() == code);
    CHECK(completed(protocol) == "2=" + message(code));
    CHECK(events(protocol) == "STOP");
}

TEST_CASE("a line above the cap closes") {
    const auto dialect = GENERATE(Dialect::qmp, Dialect::guest_agent);
    const std::string end = GENERATE("", "\n");
    auto protocol = ready(dialect, 200);
    protocol.submit("a", {});
    protocol.feed(std::string(200, ' '));
    CHECK(protocol.state() == State::ready);
    protocol.feed(" " + end);
    CHECK(protocol.error() == Errc::line_too_long);
    CHECK(completed(protocol) == "2=" + message(Errc::line_too_long));
}

TEST_CASE("events beyond the cap push out the oldest") {
    auto protocol = ready();
    for (std::size_t i = 0; i < Protocol::max_events + 3; ++i)
        protocol.feed(event(std::to_string(i)));
    CHECK(protocol.dropped_events() == 3);
    CHECK(protocol.next_event()->name == "3");
    std::size_t rest = 0;
    while (protocol.next_event()) ++rest;
    CHECK(rest == Protocol::max_events - 1);
}

TEST_CASE("agent: the handshake with garbage before the answer") {
    const std::string garbage = GENERATE(
        as<std::string>(), "", "\n\n", "{\"return\": {}, \"id\": 0}\n",
        "{\"error\": {\"class\": \"X\", \"desc\": \"y\"}, \"id\": 0}\n", "{\"return\": 77}\n",
        "login: ", "{\"ret", "\xff{\"return\": 12345}\n", "\xff\xff\xff",
        std::string("\0\x80\xfe{{{\n[[[", 9), greeting, event("STOP"), sync_request,
        std::string(
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n"));
    Protocol protocol(Dialect::guest_agent);
    protocol.start(sync_id);
    CHECK(protocol.state() == State::negotiating);
    CHECK(protocol.take_output() == sync_request);
    for (const char byte : garbage) protocol.feed({&byte, 1});
    CHECK(protocol.state() == State::negotiating);
    CHECK(completed(protocol).empty());
    protocol.feed(sync_reply);
    CHECK(protocol.state() == State::ready);
    CHECK(completed(protocol) == "1=null");
    CHECK(events(protocol).empty());
    CHECK_FALSE(protocol.greeting());
}

TEST_CASE("agent: an answer to no question") {
    Protocol protocol(Dialect::guest_agent);
    protocol.feed("\xff{\"return\": 0}\n" + sync_reply);
    CHECK(protocol.state() != State::ready);
    protocol.start(sync_id);
    CHECK(protocol.state() == State::negotiating);
    CHECK(completed(protocol).empty());
}

TEST_CASE("agent: cut anywhere") {
    const std::string input = "junk {\xff" + sync_reply + reply(99) + "x\n" + event("STOP");
    for (std::size_t first = 0; first <= input.size(); ++first) {
        Protocol protocol(Dialect::guest_agent);
        protocol.start(sync_id);
        protocol.feed(input.substr(0, first));
        protocol.feed(input.substr(first));
        REQUIRE(completed(protocol) == "1=null");
        REQUIRE(protocol.state() == State::ready);
    }
}

TEST_CASE("agent: whatever comes later is dropped line by line") {
    auto protocol = ready(Dialect::guest_agent);
    protocol.submit("guest-ping", {});
    protocol.feed("login: \n{}\n[\n" + greeting + event("STOP") + sync_reply + "\n{\"retu\xff");
    CHECK(completed(protocol).empty());
    protocol.feed(reply(2));
    CHECK(completed(protocol) == "2={}");
    CHECK(events(protocol).empty());
    CHECK(protocol.state() == State::ready);
}

TEST_CASE("agent: it can be brought back in step") {
    auto protocol = ready(Dialect::guest_agent);
    const auto early = protocol.submit("guest-ping", {});
    const auto again = protocol.start(78);
    CHECK(protocol.state() == State::negotiating);
    CHECK(error_of([&] { protocol.submit("guest-ping", {}); }) == Errc::not_ready);
    protocol.feed(sync_reply);  // late, to the first sync
    CHECK(protocol.state() == State::negotiating);
    protocol.feed(reply(early) + "\xff{\"return\": 78}\n");
    CHECK(completed(protocol) == std::to_string(early) + "={} " + std::to_string(again) + "=null");
    CHECK(protocol.state() == State::ready);
}
