#include "launcher/console.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <system_error>

#include "launcher/step.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t buffer_size = 16 * 1024;
// A guest cannot fill the host's memory with its console: the log's older half goes.
constexpr std::size_t log_limit = 8 * 1024 * 1024;
// A prompt is one only if nothing follows it at once.
constexpr std::chrono::milliseconds prompt_pause{50};
// A guest that prints no prompt gets its input when it has long been silent.
constexpr std::chrono::seconds long_silence{15};
// A kernel that goes on after a panic's last line has rebooted, or somebody printed a log.
constexpr std::chrono::milliseconds panic_pause{1000};
constexpr std::size_t kept_lines = 10;
constexpr char leave_key = 0x1d;  // Ctrl-]

UniqueFd open_log(const std::filesystem::path& path) {
    return UniqueFd{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
}

UniqueFd create_log(const std::filesystem::path& path) {
    auto log = open_log(path);
    if (!log)
        throw Failure(
            fmt::format("create '{}': {}", path.string(), std::generic_category().message(errno)));
    return log;
}

}  // namespace

Console::Local::Local(const asio::any_io_executor& executor)
    : input(executor, STDIN_FILENO),
      output(executor, STDOUT_FILENO),
      raw(RawTerminal::available() ? std::make_unique<RawTerminal>() : nullptr) {}

Console::Console(const asio::any_io_executor& executor, UniqueFd socket, UniqueFd listener,
                 const std::filesystem::path& log, bool use_stdio, Handlers handlers)
    : socket_(executor),
      log_path_(log),
      log_(create_log(log)),
      handlers_(std::move(handlers)),
      local_(use_stdio ? std::make_shared<Local>(executor) : nullptr),
      clients_(executor, std::move(listener),
               {.first_words = [this] { return lines_.open(); },
                .input = [this](std::string_view bytes) -> awaitable<bool> {
                    // Two at one keyboard: the terminal that the VM was started from comes first.
                    if (on_terminal()) co_return true;
                    co_return co_await send(bytes);
                }}),
      quiet_(executor, Clock::time_point::max()),
      panic_(executor, Clock::time_point::max()),
      news_(executor, Clock::time_point::max()),
      room_(executor, Clock::time_point::max()) {
    in_step("watch the guest's console", [&] {
        socket_.assign(asio::local::stream_protocol{}, socket.get());
        (void)socket.release();
    });
}

void Console::log(std::string_view bytes) {
    if (log_size_ + bytes.size() > log_limit / 2) {
        const auto older = log_path_.string() + ".1";
        ::rename(log_path_.c_str(), older.c_str());
        log_ = open_log(log_path_);
        log_size_ = 0;
    }
    // A full disk must not stop the guest: the log is a courtesy.
    if (!log_) log_ = open_log(log_path_);
    if (::write(log_.get(), bytes.data(), bytes.size()) > 0) log_size_ += bytes.size();
}

void Console::watch(std::string_view bytes) {
    lines_.feed(bytes, [this](std::string_view line) {
        ended_lines_.emplace_back(line);
        if (ended_lines_.size() > kept_lines) ended_lines_.pop_front();
        if (auto reason = panic_reason(line)) panic_reason_ = std::move(*reason);
        handlers_.line(line);
    });
    if (!lines_.open().empty()) handlers_.line(lines_.open());
    panic_.cancel();
    if (lines_.open().empty() && is_panic_end(lines_.ended())) {
        panic_.expires_after(panic_pause);
        panic_.async_wait([this](auto error) {
            if (!error) handlers_.panicked();
        });
    }
    quiet_.expires_after(is_prompt(lines_.open()) ? std::chrono::milliseconds{prompt_pause}
                                                  : std::chrono::milliseconds{long_silence});
}

awaitable<void> Console::pump_output() {
    using namespace asio::experimental::awaitable_operators;
    co_await (read_all() && show_all());
}

/// A terminal that was stopped, or a slow reader, does not hold up the log and those who watch. The
/// guest is held back when too much waits to be shown.
awaitable<void> Console::read_all() {
    std::array<char, buffer_size> buffer;
    for (;;) {
        const auto [error, size] = co_await socket_.async_read_some(asio::buffer(buffer), no_throw);
        if (error) break;
        const std::string_view bytes{buffer.data(), size};
        log(bytes);
        watch(bytes);
        clients_.show(bytes);
        if (local_) unshown_.append(bytes);
        news_.cancel();
        while (unshown_.size() >= ConsoleClients::max_backlog) co_await room_.async_wait(no_throw);
    }
    all_read_ = true;
    news_.cancel();
}

awaitable<void> Console::show_all() {
    for (;;) {
        while (unshown_.empty()) {
            if (all_read_) co_return;
            co_await news_.async_wait(no_throw);
        }
        const auto bytes = std::exchange(unshown_, {});
        room_.cancel();
        co_await show(bytes);
    }
}

/// Without a reader the guest goes on: it is still logged, watched, and perhaps on its way out.
awaitable<void> Console::show(std::string_view bytes) {
    const auto local = local_;
    if (!local || discarding_) co_return;
    const auto error = co_await local->output.write(bytes);
    if (!error || local != local_) co_return;  // left meanwhile
    discarding_ = true;
    handlers_.stdout_failed(error);
}

awaitable<void> Console::wait_for_prompt() {
    quiet_.expires_after(long_silence);
    for (;;) {
        // Every output sets the timer anew, which cancels this wait.
        const auto [error] = co_await quiet_.async_wait(no_throw);
        if (!error || !socket_.is_open()) co_return;
    }
}

awaitable<bool> Console::send(std::string_view bytes) {
    const auto [error, size] = co_await asio::async_write(socket_, asio::buffer(bytes), no_throw);
    co_return !error;
}

awaitable<void> Console::pump_input() {
    const auto local = local_;
    if (!local) co_return;
    if (!local->raw) {
        // A terminal whose foreground is somebody else's must not be read.
        if (::isatty(STDIN_FILENO)) co_return;
        co_await wait_for_prompt();
    }
    std::array<char, buffer_size> buffer;
    for (;;) {
        const auto size = co_await local->input.read_some(asio::buffer(buffer));
        if (size == 0 || local != local_) co_return;
        const std::string_view bytes{buffer.data(), size};
        if (local->raw)
            co_await type(bytes);
        else if (!co_await send(bytes))
            co_return;
    }
}

awaitable<void> Console::type(std::string_view keys) {
    while (!keys.empty()) {
        if (asking_) {
            answer(keys.front());
            keys.remove_prefix(1);
            continue;
        }
        const auto leave = keys.find(leave_key);
        if (!co_await send(keys.substr(0, leave))) co_return;
        if (leave == std::string_view::npos) co_return;
        keys.remove_prefix(leave + 1);
        asking_ = true;
        std::fprintf(stderr, "\nqvm: %s[s]top the VM, [k]ill it, or [c]ontinue? ",
                     handlers_.detach ? "[d]etach, " : "");
    }
}

void Console::answer(char key) {
    asking_ = false;
    std::fprintf(stderr, "%c\n", key >= ' ' && key < 0x7f ? key : ' ');
    if (key == 's' || key == 'k') handlers_.stop(key == 'k');
    if (key == 'd' && handlers_.detach) handlers_.detach();
}

std::string Console::panic_text() const {
    return panic_reason_.empty() ? last_line() : panic_reason_;
}

std::string Console::last_line() const {
    return lines_.open().empty() ? lines_.ended() : lines_.open();
}

std::vector<std::string> Console::last_lines() const {
    std::vector<std::string> lines{ended_lines_.begin(), ended_lines_.end()};
    if (!lines_.open().empty()) lines.push_back(lines_.open());
    return lines;
}

void Console::resume() const {
    if (on_terminal()) local_->raw->reapply();
}

void Console::leave_stdio() {
    const auto local = std::exchange(local_, nullptr);
    if (!local) return;
    local->raw.reset();
    local->input.close();
    local->output.close();
}

}  // namespace qvm
