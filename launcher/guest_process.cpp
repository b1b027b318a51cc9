#include "launcher/guest_process.h"

#include <fmt/format.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cstdlib>
#include <optional>
#include <random>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/json_text.h"
#include "launcher/step.h"
#include "launcher/terminal.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using asio::local::stream_protocol;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t buffer_size = 64 * 1024;
constexpr std::chrono::seconds terminal_drain{2};
constexpr auto step = "run a command in the guest";

std::string make_secret() {
    std::random_device random;
    return fmt::format("{:08x}{:08x}", random(), random());
}

/// A variable without a value has ours, if any, and a terminal is as ours is.
GuestCommand with_our_values(GuestCommand command) {
    std::vector<std::string> environment;
    if (command.terminal) {
        command.terminal = RawTerminal::size();
        command.environment.insert(command.environment.begin(), "TERM");
    }
    for (const auto& variable : command.environment) {
        const char* value = nullptr;
        if (variable.find('=') != std::string::npos) {
            environment.push_back(variable);
        } else if (value = std::getenv(variable.c_str()); value != nullptr) {
            environment.push_back(variable + "=" + value);
        }
    }
    command.environment = std::move(environment);
    return command;
}

}  // namespace

struct GuestProcess::Core : std::enable_shared_from_this<Core> {
    Core(const asio::any_io_executor& executor, UniqueFd connection)
        : service(executor), in(executor), out(executor), err(executor), news(executor) {
        news.expires_at(asio::steady_timer::time_point::max());
        in_step(step, [&] {
            service.assign(connection.get());
            (void)connection.release();
        });
    }

    void ask(const GuestCommand& command, bool with_stdin, const GuestStreams& streams) {
        on_terminal = command.terminal.has_value();
        if (on_terminal && with_stdin && !RawTerminal::available())
            throw Failure("--tty: stdin is no terminal");
        if (with_stdin) our_in.emplace(in.get_executor(), streams.in);
        our_out.emplace(in.get_executor(), streams.out);
        our_err.emplace(in.get_executor(), streams.err);
        auto request = to_json(with_our_values(command));
        request["secret"] = secret;
        const auto text = json::serialize(request);
        if (text.size() > largest_message)
            throw Failure(
                fmt::format("the command is too long: more than {} KiB", largest_message / 1024));
        if (!send_with_fds(service.native_handle(), text, {}))
            throw Failure(fmt::format("{}: {}", step, std::generic_category().message(errno)));
    }

    /// The service's answer.
    awaitable<void> take_streams() {
        auto message = co_await receive();
        while (tell_notes(parsed(message))) message = co_await receive();
        std::vector<stream_protocol::socket*> ours{&out, &err};
        if (!on_terminal) ours.insert(ours.begin(), &in);
        if (message.fds.size() != ours.size()) throw failure_in(parsed(message));
        for (std::size_t i = 0; i < ours.size(); ++i) {
            in_step(step, [&] {
                ours[i]->assign(stream_protocol{}, message.fds[i].get());
                (void)message.fds[i].release();
            });
        }
    }

    void spawn(awaitable<void> work) {
        asio::co_spawn(in.get_executor(), std::move(work),
                       [self = shared_from_this()](std::exception_ptr why) {
                           if (why) self->fail(why);
                       });
    }

    /// What is on its way to us is still read.
    void fail(std::exception_ptr why) {
        failure = why;
        stop(out), stop(err);
        news.cancel();
    }

    static void stop(stream_protocol::socket& socket) {
        boost::system::error_code ignored;
        socket.shutdown(stream_protocol::socket::shutdown_receive, ignored);
    }

    void tell(const json::object& message) {
        send_with_fds(service.native_handle(), json::serialize(message), {});
    }

    awaitable<MessageWithFds> receive() {
        const auto [error] =
            co_await service.async_wait(asio::posix::stream_descriptor::wait_read, no_throw);
        auto message = error ? std::nullopt : receive_with_fds(service.native_handle(), 0);
        if (!message) throw Failure("the VM ended while the command ran", {}, status::guest_died);
        co_return std::move(*message);
    }

    /// What the service says after its answer.
    awaitable<void> watch_service() {
        for (;;) {
            const auto message = co_await receive();
            const auto words = parsed(message);
            if (!tell_notes(words)) throw failure_in(words);
        }
    }

    /// Whether that is what it is.
    bool tell_notes(const json::value& message) {
        const auto waiting = text_in(message, "waiting");
        const auto note = text_in(message, "note");
        if (!waiting.empty()) notes.waiting(waiting);
        if (!note.empty()) notes.note(note);
        return !waiting.empty() || !note.empty();
    }

    /// Null where it is none.
    static json::value parsed(const MessageWithFds& message) {
        boost::system::error_code wrong;
        return json::parse(message.text, wrong);
    }

    static Failure failure_in(const json::value& message) {
        const auto reason = text_in(message, "error");
        const auto exit_status = static_cast<int>(number_in(message, "exit_status"));
        return Failure(reason.empty() ? "the supervisor is not understood" : reason, {},
                       exit_status != 0 ? exit_status : status::failed);
    }

    awaitable<void> pump_in() {
        std::array<char, buffer_size> buffer;
        while (our_in) {
            const auto size = co_await our_in->read_some(asio::buffer(buffer));
            if (size == 0) break;
            transferred += size;
            const auto [error, sent] = co_await asio::async_write(
                on_terminal ? out : in, asio::buffer(buffer.data(), size), no_throw);
            if (error) co_return;
        }
        if (on_terminal) co_return;  // it has no end
        boost::system::error_code ignored;
        in.shutdown(stream_protocol::socket::shutdown_send, ignored);
    }

    awaitable<void> pump_out() {
        std::array<char, buffer_size> buffer;
        for (;;) {
            const auto [error, size] = co_await out.async_read_some(asio::buffer(buffer), no_throw);
            const auto text = error ? guest_out.finish() : guest_out.feed({buffer.data(), size});
            transferred += text.size();
            if (!co_await write(*our_out, text, "stdout")) stop(err), stop(out);
            if (error || guest_out.end()) break;
        }
        out_is_over = true;
        news.cancel();
    }

    awaitable<void> pump_err() {
        std::array<char, buffer_size> buffer;
        bool told = false;
        while (!guest.exit_status()) {
            const auto [error, size] = co_await err.async_read_some(asio::buffer(buffer), no_throw);
            if (error) break;
            const auto text = guest.feed({buffer.data(), size});
            if (guest.pid() && !std::exchange(told, true)) tell({{"pid", *guest.pid()}});
            if (!co_await write(*our_err, text, "stderr")) break;
        }
        if (!guest.exit_status()) {
            co_await write(*our_err, guest.finish(), "stderr");
            stop(out);
        }
        // A terminal that was hung up there does not say that this is all.
        asio::steady_timer drain{in.get_executor()};
        if (on_terminal) {
            drain.expires_after(terminal_drain);
            drain.async_wait([self = shared_from_this()](auto error) {
                if (!error) stop(self->out);
            });
        }
        while (!out_is_over) co_await news.async_wait(no_throw);
    }

    awaitable<bool> write(Stdio& stream, std::string_view bytes, const char* name) {
        if (bytes.empty() || unwritten) co_return !unwritten;
        unwritten = co_await stream.write(bytes);
        if (unwritten) what_is_unwritten = name;
        co_return !unwritten;
    }

    asio::posix::stream_descriptor service;
    stream_protocol::socket in, out, err;
    std::optional<Stdio> our_in, our_out, our_err;
    const std::string secret = make_secret();
    GuestOutput guest_out{secret};
    GuestStderr guest{secret};
    asio::steady_timer news;  ///< cancelled when something has come to its end
    GuestNotes notes;
    std::uint64_t transferred = 0;
    bool on_terminal = false;
    bool out_is_over = false;
    std::error_code unwritten;  ///< why output of the command is lost
    const char* what_is_unwritten = "";
    std::exception_ptr failure;
};

GuestProcess::GuestProcess(const asio::any_io_executor& executor, UniqueFd service,
                           const GuestCommand& command, bool with_stdin, GuestNotes notes,
                           GuestStreams streams)
    : core_(std::make_shared<Core>(executor, std::move(service))) {
    core_->notes = std::move(notes);
    core_->ask(command, with_stdin, streams);
}

GuestProcess::~GuestProcess() {
    boost::system::error_code ignored;
    core_->service.close(ignored);
    for (auto* stream : {&core_->in, &core_->out, &core_->err}) stream->close(ignored);
    for (auto* stream : {&core_->our_in, &core_->our_out, &core_->our_err})
        if (*stream) (*stream)->close();
}

awaitable<int> GuestProcess::end() {
    auto core = core_;
    std::optional<RawTerminal> raw;
    if (core->on_terminal && core->our_in) raw.emplace();
    co_await core->take_streams();
    core->spawn(core->watch_service());
    core->spawn(core->pump_in());
    core->spawn(core->pump_out());
    co_await core->pump_err();
    if (core->unwritten == std::errc::broken_pipe) co_return status::signalled + SIGPIPE;
    if (core->unwritten)
        throw Failure(
            fmt::format("write to {}: {}", core->what_is_unwritten, core->unwritten.message()));
    // Where it was not told how the command ended, the service says why.
    while (!core->guest.exit_status() && !core->failure) co_await core->news.async_wait(no_throw);
    if (!core->guest.exit_status()) std::rethrow_exception(core->failure);
    core->tell({{"pid", 0}});
    co_return *core->guest.exit_status();
}

bool GuestProcess::signal(int number) {
    if (!core_->guest.pid()) return false;
    const char* name = ::sigabbrev_np(number);
    core_->tell({{"pid", *core_->guest.pid()},
                 {"signal", name != nullptr ? name : std::to_string(number)}});
    return true;
}

std::uint64_t GuestProcess::transferred() const noexcept {
    return core_->transferred;
}

void GuestProcess::resize() {
    if (core_->guest.terminal().empty()) return;
    const auto size = RawTerminal::size();
    core_->tell({{"pid", *core_->guest.pid()},
                 {"resize", core_->guest.terminal()},
                 {"rows", size.rows},
                 {"columns", size.columns}});
}

}  // namespace qvm
