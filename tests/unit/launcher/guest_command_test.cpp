#include "launcher/guest_command.h"

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>

#include "launcher/failure.h"
#include "launcher/process.h"

using namespace qvm;
using namespace std::string_literals;

namespace {

constexpr const char* secret = "5ec4e7";

/// What the port of stderr says of a command that prints `text` there.
std::string whole(const std::string& text, int status = 7) {
    return std::string{secret} + " 42\n" + text + std::string(1, '\0') + secret + " " +
           std::to_string(status) + "\n";
}

}  // namespace

TEST_CASE("a guest command survives the way through JSON") {
    const GuestCommand command{{"sh", "-c", "echo \"$1\"\n", ""}, {"A=1", "B="}, "/srv"};
    const auto again = parse_guest_command(to_json(command));
    CHECK(again.argv == command.argv);
    CHECK(again.environment == command.environment);
    CHECK(again.directory == command.directory);
    CHECK_THROWS_AS(parse_guest_command({}), Failure);
    CHECK_THROWS_AS(parse_guest_command(to_json({{}, {}, {}})), Failure);
    boost::json::object numbers{{"environment", boost::json::array{}}};
    numbers["argv"] = boost::json::array{1};
    CHECK_THROWS_AS(parse_guest_command(numbers), Failure);
}

TEST_CASE("stderr is what the command wrote, however it is cut") {
    const std::string text = GENERATE(""s, "oops\n"s, "\0"s, "\0005ec4e"s, "\0005ec4e8 1\n"s,
                                      "5ec4e7 9\n"s, std::string(100, '\0'));
    const auto bytes = whole(text);
    for (std::size_t step = 1; step <= bytes.size(); ++step) {
        GuestStderr guest{secret};
        std::string read;
        for (std::size_t at = 0; at < bytes.size(); at += step)
            read += guest.feed(std::string_view{bytes}.substr(at, step));
        REQUIRE(read == text);
        REQUIRE(guest.pid() == 42);
        REQUIRE(guest.exit_status() == 7);
    }
}

TEST_CASE("stdout is what the command wrote before the mark, however it is cut") {
    const std::string text = GENERATE(""s, "oops\n"s, "\0"s, "\0005ec4e"s, std::string(100, '\0'));
    const auto bytes = text + std::string(1, '\0') + secret + " \nnot ours";
    for (std::size_t step = 1; step <= bytes.size(); ++step) {
        GuestOutput guest{secret};
        std::string read;
        for (std::size_t at = 0; at < bytes.size(); at += step)
            read += guest.feed(std::string_view{bytes}.substr(at, step));
        REQUIRE(read == text);
        REQUIRE(guest.end() == "");
    }
    GuestOutput cut{secret};
    CHECK(cut.feed("a\0005e"s) == "a");
    CHECK(!cut.end());
    CHECK(cut.finish() == "\0005e"s);
}

TEST_CASE("stderr of a command that was never started, or has no end") {
    GuestStderr guest{secret};
    CHECK(guest.feed("sh: cd: no such directory\n") == "sh: cd: no such directory\n");
    CHECK(guest.feed(std::string(1, '\0') + secret + " 126\n").empty());
    CHECK(guest.exit_status() == 126);
    CHECK(!guest.pid());

    GuestStderr cut{secret};
    const auto bytes = whole("oops");
    CHECK(cut.feed(std::string_view{bytes}.substr(0, bytes.size() - 2)) == "oops");
    CHECK(!cut.exit_status());
    CHECK(cut.finish().size() == 1 + std::string_view{secret}.size() + 1);
}

TEST_CASE("a guest that says no end of a line is not kept") {
    const std::string endless(100'000, 'x');
    GuestOutput output{secret};
    CHECK(output.feed("a\0"s + secret + " ") == "a");
    for (int i = 0; i < 3; ++i) CHECK(output.feed(endless).empty());
    CHECK(output.end());
    CHECK(output.finish().empty());

    GuestStderr begin{secret};
    CHECK(begin.feed(secret + " 1"s).empty());
    CHECK(begin.feed(endless) == secret + " 1"s + endless);
    GuestStderr end{secret};
    CHECK(end.feed("\0"s + secret + " " + endless).empty());
    CHECK(!end.exit_status());
    CHECK(end.feed("more").empty());
    CHECK(end.finish().empty());
}

TEST_CASE("what the agent says of a command that it captures") {
    using boost::json::parse;
    CHECK(!parse_guest_capture(parse(R"({"exited": false})")));
    const auto ended = parse_guest_capture(
        parse(R"({"exited": true, "exitcode": 3, "out-data": "Zm9v", "err-truncated": true})"));
    REQUIRE(ended);
    CHECK(ended->out == "foo");
    CHECK(ended->err.empty());
    CHECK(ended->exit_status == 3);
    CHECK(ended->truncated);
    CHECK(parse_guest_capture(parse(R"({"exited": true, "signal": 9})"))->exit_status == 137);
    for (const auto* answer :
         {"{}", "[]", "3", R"({"exited": 1})", R"({"exited":true,"out-data":"!"})"})
        CHECK_THROWS_AS(parse_guest_capture(parse(answer)), Failure);

    const auto arguments = guest_capture_arguments({{"cat", "-n"}}, "foo");
    CHECK(boost::json::serialize(arguments) ==
          R"({"path":"cat","capture-output":true,"arg":["-n"],"input-data":"Zm9v"})");
    CHECK_THROWS_AS(guest_capture_arguments({{"cat"}, {"A=1"}}, ""), Failure);
}

TEST_CASE("the shell that runs it is told where, with what, and passes words on as they are") {
    const auto arguments =
        guest_exec_arguments({{"printf", "%s|", "a b", "$x", ""}, {"A=1 2"}, "/"}, 3, secret);
    CHECK(arguments.at("path") == "/bin/sh");
    const auto& words = arguments.at("arg").get_array();
    CHECK(words.at(0) == "-c");
    std::string rest;
    constexpr std::size_t inner = 10;
    for (std::size_t i = 2; i < words.size(); ++i)
        if (i != inner) rest += std::string{words.at(i).get_string()} + ",";
    CHECK(rest == "qvm,3,5ec4e7,/,,,0,0,A=1 2,--,printf,%s|,a b,$x,,");
    // What is in a script is a shell's.
    for (const auto at : {std::size_t{1}, inner}) {
        const auto script = std::string{words.at(at).get_string()};
        CHECK(run_tool({"sh", "-n", "-c", script}, "").status.code == 0);
    }
}

TEST_CASE("a shell that waits is told the same in lines of shell") {
    const auto arguments = guest_wait_arguments(0);
    const auto& words = arguments.at("arg").get_array();
    const auto script = std::string{words.at(1).get_string()};
    CHECK(run_tool({"sh", "-n", "-c", script}, "").status.code == 0);
    const GuestCommand command{
        {"printf", "a b", "$x", "", "it's\n5ec4e7 \n"}, {"A=1 2"}, "/a b", "me:you"};
    const auto request = guest_request(command, secret, "echo news\n");
    CHECK(request.starts_with("5ec4e7\necho news\n"));
    CHECK(request.ends_with("\n5ec4e7\n"));
    // As the shell there reads it, from its stdin.
    const auto begin = script.find("IFS= read -r mark"), end = script.find("set -- sh -c");
    REQUIRE(begin < end);
    const auto done =
        run_tool({"sh", "-c",
                  script.substr(begin, end - begin) +
                      "printf '%s|' \"$secret\" \"$directory\" \"$user\" \"$@\"; cat"},
                 request + "its stdin");
    CHECK(done.out == "news\n5ec4e7|/a b|me:you|A=1 2|--|printf|a b|$x||it's\n5ec4e7 \n|its stdin");
    CHECK(done.status.code == 0);
}
