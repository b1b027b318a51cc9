// qvm console: this terminal, attached to a living VM's console.

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/output.h"
#include "launcher/terminal.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_state.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using asio::local::stream_protocol;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto command_timeout = 10s;
constexpr auto farewell = 5s;     // of a supervisor that has let go of its console, to be gone
constexpr char leave_key = 0x1d;  // Ctrl-]

class Attachment {
  public:
    Attachment(const Directories& directories, const std::string& name)
        : directories_(directories),
          name_(name),
          control_(context_.get_executor(), directories, name) {
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT}) signals_.add(number);
    }

    int operator()() {
        asio::co_spawn(context_, attach(), [this](const std::exception_ptr& failure) {
            failure_ = failure;
            context_.stop();
        });
        context_.run();
        raw_.reset();
        if (failure_) std::rethrow_exception(failure_);
        if (!say_after_.empty()) say(say_after_);
        return exit_status_;
    }

  private:
    awaitable<void> attach() {
        co_await control_.ready();
        connect();
        if (RawTerminal::available()) {
            co_await greet();
            raw_ = std::make_unique<RawTerminal>();
        }
        input_.emplace(context_.get_executor(), STDIN_FILENO);
        output_.emplace(context_.get_executor(), STDOUT_FILENO);
        asio::co_spawn(context_, watch_signals(), asio::detached);
        asio::co_spawn(context_, pump_input(), asio::detached);
        const auto error = co_await pump_output();
        if (error == std::errc::broken_pipe)
            exit_status_ = status::signalled + SIGPIPE;
        else if (error)
            throw Failure("write to stdout: " + error.message());
        else if (co_await has_ended())
            say_after_ = fmt::format("qvm: VM '{}' ended", name_);
        else
            let_go();
    }

    /// A console that closes is mostly a VM's end.
    awaitable<bool> has_ended() {
        if (co_await control_.is_gone(farewell)) co_return true;
        const auto vm = read_vm(directories_.run, name_);
        co_return !vm || vm->text("state") == "stopping";
    }

    void connect() {
        auto socket = connect_to(directories_.run / name_ / "console.sock");
        if (!socket) throw not_running(directories_, name_);
        console_.assign(stream_protocol{}, socket->release());
    }

    [[noreturn]] void let_go() const {
        throw Failure(
            fmt::format("VM '{}': goes on, but has too many consoles, or this one did not "
                        "keep up",
                        name_),
            "qvm logs -f " + name_);
    }

    awaitable<void> greet() {
        co_await resize();
        say(fmt::format("qvm: attached to '{}'{}; Ctrl-] leaves", name_,
                        writes_ ? "" : ", to watch until whoever writes there now leaves"));
    }

    /// Whoever is alone writes, and goes on to do so when others come.
    awaitable<bool> writes() {
        const auto answer = co_await control_.execute("qvm-query-console", {}, command_timeout);
        // This attachment is counted as well.
        writes_ = writes_ || answer.at("attached").to_number<int>() <= 1;
        co_return writes_;
    }

    /// The guest's terminal is as large as the writer's. A courtesy.
    awaitable<void> resize() {
        const auto [rows, columns] = RawTerminal::size();
        boost::json::object size;
        size["rows"] = rows;
        size["columns"] = columns;
        try {
            if (!co_await writes()) co_return;
            co_await control_.execute("qvm-resize-console", std::move(size), command_timeout);
        } catch (const Failure&) {
            // The VM is on its way out.
        }
    }

    /// Why it cannot be written any more; no error where the console's other side is closed.
    awaitable<std::error_code> pump_output() {
        std::array<char, 16384> buffer;
        for (;;) {
            const auto [error, size] =
                co_await console_.async_read_some(asio::buffer(buffer), no_throw);
            if (error) co_return std::error_code{};
            if (const auto why = co_await output_->write({buffer.data(), size})) co_return why;
        }
    }

    awaitable<void> pump_input() {
        std::array<char, 4096> buffer;
        for (;;) {
            const auto size = co_await input_->read_some(asio::buffer(buffer));
            if (size == 0) co_return;  // what the guest prints is still worth seeing
            const std::string_view keys{buffer.data(), size};
            const auto leave = raw_ ? keys.find(leave_key) : std::string_view::npos;
            const auto [error, sent] =
                co_await asio::async_write(console_, asio::buffer(keys.substr(0, leave)), no_throw);
            if (error) co_return;
            if (leave == std::string_view::npos) continue;
            say_after_ = fmt::format("\nqvm: left '{}', which goes on", name_);
            context_.stop();
        }
    }

    awaitable<void> watch_signals() {
        for (;;) {
            const int number = co_await signals_.async_wait(asio::use_awaitable);
            if (number == SIGWINCH) {
                co_await resize();
            } else if (number == SIGCONT) {
                if (raw_) raw_->reapply();
            } else {
                exit_status_ = status::signalled + number;
                context_.stop();
            }
        }
    }

    asio::io_context context_{1};
    Directories directories_;
    std::string name_;
    ControlClient control_;
    stream_protocol::socket console_{context_};
    asio::signal_set signals_{context_};
    std::optional<Stdio> input_;
    std::optional<Stdio> output_;
    std::unique_ptr<RawTerminal> raw_;
    std::exception_ptr failure_;
    bool writes_ = false;
    std::string say_after_;  ///< when the terminal is as it was
    int exit_status_ = status::ok;
};

}  // namespace

int console(const ConsoleOptions& options) {
    return Attachment{find_directories(), options.name}();
}

}  // namespace qvm
