#include "launcher/guest_command.h"

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>

#include "launcher/base64.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/guest_files.h"
#include "launcher/process.h"
#include "tests/unit/launcher/temporary.h"

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
    CHECK(arguments.at("arg").get_array().size() == 2);  // ps(1) has nothing of the command
    // The agent reads 4096 bytes in one go.
    CHECK(boost::json::serialize(arguments).size() < 4000);
    // What is in a script is a shell's.
    const auto script = from_base64(arguments.at("input-data").get_string());
    CHECK(run_tool({"sh", "-n"}, script).err.empty());
    CHECK(script.find("\ntag=3 secret=5ec4e7 terminal= rows=0 columns=0\n"
                      "set -- / '' 'A=1 2' -- printf '%s|' 'a b' '$x' ''\n") != std::string::npos);
    for (const auto part : {guest_files::session_sh, guest_files::command_sh})
        CHECK(run_tool({"sh", "-n"}, std::string{part}).err.empty());
}

TEST_CASE("a guest that has news is told before") {
    const Awakening news{.name = "web-2", .now = {}, .random = "00", .boot_id = "11"};
    const auto arguments = guest_exec_arguments({{"true"}}, 3, secret, news);
    const auto script = from_base64(arguments.at("input-data").get_string());
    CHECK(script.starts_with(awaken_functions() + awaken_call(news)));
}

TEST_CASE("a shell that waits becomes the command that it is told") {
    const auto arguments = guest_wait_arguments(0);
    auto script = from_base64(arguments.at("input-data").get_string());
    // Its session, with no ports but this process's.
    const auto ports = script.find("tag=0");
    REQUIRE(ports != std::string::npos);
    script.erase(ports);
    script += "export session command\nexec sh -c 'eval \"$session\"' 3>&2 6>\"$1\"";
    const Temporary directory;
    const auto told = directory.path / "told";
    const GuestCommand command{{"sh", "-c", "pwd; printf '%s|' \"$A\" \"$@\"; cat; exit 7", "x",
                                "a b", "$x", "", "it's\n5ec4e7 \n"},
                               {"A=1 2"},
                               "/usr/bin"};
    const auto done =
        run_tool({"sh", "-c", script, "sh", told.string()},
                 guest_request("dismiss_awakener\nhelper=\necho news >&2\n", "mark") +
                     guest_request(guest_becomes(command, secret), secret) + "its stdin");
    CHECK(done.out == "/usr/bin\n1 2|a b|$x||it's\n5ec4e7 \n|its stdin");
    CHECK(done.status.code == 7);
    CHECK(read_file(told) == "5ec4e7\n");
    const std::string waits{guest_waits};
    const auto said = waits + "news\n" + waits;
    REQUIRE(done.err.starts_with(said));
    GuestStderr guest{secret};
    CHECK(guest.feed(done.err.substr(said.size())).empty());
    CHECK(guest.pid());
}

TEST_CASE("what cannot be run in a shell that waits says so, and why") {
    const auto wait = guest_wait_arguments(0);
    auto script = from_base64(wait.at("input-data").get_string());
    script.erase(script.find("tag=0"));
    script += "export session command\nexec sh -c 'eval \"$session\"' 3>&2 6>/dev/null";
    const auto run = [&](const GuestCommand& command) {
        return run_tool({"sh", "-c", script},
                        guest_request(guest_becomes(command, secret), secret));
    };
    const auto nowhere = run({{"true"}, {}, "/no/where"});
    CHECK(nowhere.status.code == 126);
    CHECK(nowhere.err.find("/no/where") != std::string::npos);
    const auto nobody = run({{"true"}, {}, "", "nobody-of-that-name"});
    CHECK(nobody.status.code == 126);
    CHECK(nobody.err.ends_with("the guest has no user 'nobody-of-that-name'\n"));
    CHECK(run({{"no-such-command"}}).status.code == 127);
    // A machine that is gone has nothing to say.
    CHECK(run_tool({"sh", "-c", script}, "").status.code == 9);
}

TEST_CASE("a request has the news first") {
    const Awakening news{.name = "web-2", .now = {}, .random = "00", .boot_id = "11"};
    CHECK(guest_request(awaken_call(news) + guest_becomes({{"true"}, {}, "/a b", "me:you"}, secret),
                        secret) ==
          "5ec4e7\nawaken web-2 0 000000000 00 11\n"
          "set -- 5ec4e7 '' '/a b' me:you -- true\n5ec4e7\n");
}
