#include "launcher/guest_script.h"

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/object.hpp>
#include <chrono>

#include "launcher/guest_process.h"
#include "launcher/memory_file.h"

namespace qvm {

boost::asio::awaitable<GuestAnswer> run_in_guest(boost::asio::any_io_executor executor,
                                                 UniqueFd service, GuestCommand command) {
    const MemoryFile out, err;
    const GuestNotes silent{.waiting = [](const std::string&) {},
                            .note = [](const std::string&) {}};
    const GuestStreams streams{.in = -1, .out = out.fd(), .err = err.fd()};
    GuestProcess process{executor, std::move(service), command, false, silent, streams};
    const int exit_status = co_await process.end();
    co_return GuestAnswer{exit_status, out.text(), err.text()};
}

boost::asio::awaitable<std::optional<GuestCapture>> capture_end(qmp::Client& agent,
                                                                std::int64_t pid,
                                                                std::function<bool()> wanted) {
    constexpr std::chrono::seconds answer_timeout{30};
    constexpr std::chrono::milliseconds shortest_pause{20}, longest_pause{500};
    boost::asio::steady_timer timer{co_await boost::asio::this_coro::executor};
    for (auto pause = shortest_pause; wanted(); pause = std::min(2 * pause, longest_pause)) {
        timer.expires_after(pause);
        co_await timer.async_wait(boost::asio::use_awaitable);
        boost::json::object arguments{{"pid", pid}};
        const auto answer =
            co_await agent.execute("guest-exec-status", std::move(arguments), answer_timeout);
        auto end = parse_guest_capture(answer);
        if (end) co_return end;
    }
    co_return std::nullopt;
}

}  // namespace qvm
