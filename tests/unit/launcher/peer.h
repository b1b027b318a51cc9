#pragma once

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <catch2/catch.hpp>
#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "launcher/unix_socket.h"

namespace qvm {

inline std::array<int, 2> socket_pair() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    return ends;
}

/// Plays QEMU's monitor and the guest agent: does what it is told, and remembers it.
struct Peer {
    Peer(boost::asio::io_context& context, int descriptor) : socket(context, descriptor) {}

    boost::asio::awaitable<void> play() {
        for (;;) {
            co_await socket.async_wait(boost::asio::posix::stream_descriptor::wait_read,
                                       boost::asio::use_awaitable);
            auto message = receive_with_fds(socket.native_handle(), 0);
            if (!message) co_return;
            for (auto& fd : message->fds) given.push_back(std::move(fd));
            input += message->text;
            for (auto end = input.find('\n'); end != std::string::npos; end = input.find('\n')) {
                auto line = input.substr(0, end);
                input.erase(0, end + 1);
                std::erase(line, '\xff');
                answer(boost::json::parse(line).as_object());
            }
        }
    }

    void answer(const boost::json::object& request) {
        const std::string command{request.at("execute").as_string()};
        boost::json::object answer{{"return", boost::json::object{}}};
        std::string before;
        if (command == "guest-sync-delimited") {
            before = '\xff';
            answer["return"] = request.at("arguments").at("id");
        } else if (command == "guest-exec") {
            answer["return"] = boost::json::object{{"pid", 7}};
        } else if (command == "guest-exec-status") {
            answer["return"] = boost::json::object{{"exited", true}, {"exitcode", 0}};
        }
        for (const auto& event : events_before[command]) say(event);
        if (!replies[command].empty()) {
            answer["return"] = replies[command].front();
            replies[command].pop_front();
        }
        if (refusals.erase(command) != 0)
            answer = {{"error", {{"class", "GenericError"}, {"desc", "not now"}}}};
        if (const auto* id = request.if_contains("id")) answer["id"] = *id;
        commands.push_back(command);
        last = request;
        say(before + boost::json::serialize(answer));
    }

    void say(const std::string& line) {
        REQUIRE(send_with_fds(socket.native_handle(), line + "\n", {}));
    }

    [[nodiscard]] long count(const std::string& command) const {
        return std::count(commands.begin(), commands.end(), command);
    }

    boost::asio::posix::stream_descriptor socket;
    std::string input;
    std::vector<std::string> commands;
    boost::json::object last;  ///< request
    std::vector<UniqueFd> given;
    std::map<std::string, std::vector<std::string>> events_before;  ///< an answer, by command
    std::map<std::string, std::deque<boost::json::value>> replies;  ///< in order; else {}
    std::set<std::string> refusals;                                 ///< once
};

/// A QEMU's first words.
constexpr const char* qemu_greeting =
    R"({"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 8}}}})";

/// Runs it to its end, which must come within a minute.
inline void run(boost::asio::io_context& context,
                const std::function<boost::asio::awaitable<void>()>& script) {
    std::exception_ptr failure;
    boost::asio::co_spawn(context, script(), [&](std::exception_ptr why) {
        failure = why;
        context.stop();
    });
    context.run_for(std::chrono::minutes{1});
    if (failure) std::rethrow_exception(failure);
    REQUIRE(context.stopped());
}

}  // namespace qvm
