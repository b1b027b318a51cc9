#include "launcher/exec_service.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <deque>
#include <list>
#include <optional>
#include <set>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/guest_command.h"
#include "launcher/guest_script.h"
#include "launcher/json_text.h"
#include "launcher/qemu_command.h"
#include "launcher/step.h"
#include "launcher/unix_socket.h"
#include "qmp/error.h"

namespace qvm {

namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto command_timeout = 30s;  // of QEMU and of the agent
constexpr auto agent_patience = 10s;   // of a client, with a guest that has had time to boot
constexpr auto silent_patience = 3s;   // before the client is told what it waits for
constexpr auto open_patience = 20s;    // with the guest, for the ports of a command
constexpr auto ready_patience = 5s;    // with the guest, for the shell that waits in it
constexpr auto unplug_patience = 30s;  // with QEMU
constexpr std::size_t most_captures = 20;
constexpr std::size_t longest_request = 8 * 1024;       // bytes, to a shell that reads one by one
constexpr std::size_t largest_input = 8 * 1024 * 1024;  // bytes, of a command without ports
constexpr auto question_pause = 1s;   // before the agent is asked for a shell that is silent
constexpr auto accept_pause = 100ms;  // where there are no descriptors just now
constexpr auto end_patience = 1s;     // with a command that may have ended
constexpr auto reap_pause = 100ms;    // between two questions whether the agent's child has ended
constexpr int reap_questions = 10;
constexpr auto late_word = 1s;  // that a command may still be on its way to tell its end

// QEMU drops what it has to tell the guest about ports while there is no room in the control queue
// (hw/char/virtio-serial-bus.c: 32 messages), and the guest knows nothing of a port for ever, or
// keeps one that is gone. So ports are plugged in for one command after another, each when the
// guest has opened those before: that answers all messages before. A plugged port takes three, one
// that is unplugged takes one, and so does the end of a stdin, at any time.
constexpr unsigned most_unanswered = 12;
constexpr unsigned messages_of_port = 3;
constexpr std::size_t most_plugged = most_ports - 2;  // one is the agent's, and none has number 0

using Connection = asio::posix::stream_descriptor;

/// What a refused or unanswered command is to a user.
template <typename Work>
awaitable<json::value> in_words(std::string step, Work work) {
    try {
        co_return co_await work();
    } catch (const qmp::CommandError& refusal) {
        throw Failure(step + ": " + refusal.desc);
    } catch (const std::system_error& failure) {
        throw Failure(step + ": " + failure.code().message());
    }
}

/// What a shell says of a command that the agent cannot start (glib's spawn, with strerror).
int status_of_refusal(std::string_view text) {
    if (text.find("No such file") != std::string_view::npos) return status::not_found;
    if (text.find("Permission denied") != std::string_view::npos) return status::not_runnable;
    return status::failed;
}

/// One of a command's.
struct StreamSockets {
    UniqueFd client;  ///< a copy: QEMU is not to see the end of a client that dies, but of the port
    UniqueFd qemu;  ///< until the guest has opened the port: who reads the other is to see its end
};

/// The guest has not what a command's ports take: a shell, say, or sysfs. The command was not run.
struct NoPorts {};
/// A shell of ours is no more.
struct ShellEnded {};
/// Nobody waits for the command any more.
struct ClientLeft {};

/// A client's command.
struct Session {
    explicit Session(Connection connection_) : connection(std::move(connection_)) {}

    void tell(const json::object& message) {
        if (connection.is_open())
            send_with_fds(connection.native_handle(), json::serialize(message), {});
    }
    void tell_error(const std::string& why, int exit_status) {
        tell({{"error", why}, {"exit_status", exit_status}});
    }

    Connection connection;
    GuestCommand guest_command;
    std::string secret;
    unsigned long tag = 0;
    std::vector<StreamSockets> sockets;
    std::vector<std::string> ports;  ///< QEMU's ids, of devices as of their chardevs
    std::set<std::string> opened;    ///< those that the guest has opened
    std::string end_port;            ///< on which the guest says how the command ended
    std::int64_t shell = 0;          ///< the agent's child; 0 while there is none
    std::int64_t command = 0;        ///< as the client read it; 0: not yet
    bool ended = false;              ///< as the client says
    bool lost = false;               ///< the guest that ran it is no more
};

}  // namespace

struct ExecService::Core : std::enable_shared_from_this<Core> {
    Core(const asio::any_io_executor& executor, UniqueFd listener_, qmp::Client& monitor_,
         qmp::Client& agent_, Clock::duration boot_patience_, ReadyPorts ready_)
        : listener(executor),
          monitor(monitor_),
          agent(agent_),
          news(executor),
          count(ready_.tag),
          ready_shell(ready_.shell),
          boot_patience(boot_patience_) {
        for (auto& [ours, theirs] : ready_.sockets)
            ready.push_back({std::move(ours), std::move(theirs)});
        plugged = ready.size();
        news.expires_at(Clock::time_point::max());
        in_step("listen for commands", [&] {
            listener.assign(listener_.get());
            (void)listener_.release();
        });
    }

    awaitable<void> accept() {
        while (!over) {
            UniqueFd client{::accept4(listener.native_handle(), nullptr, nullptr,
                                      SOCK_CLOEXEC | SOCK_NONBLOCK)};
            if (client) {
                asio::co_spawn(listener.get_executor(),
                               serve(shared_from_this(), std::move(client)), asio::detached);
            } else if (errno == EAGAIN) {
                const auto [error] = co_await listener.async_wait(Connection::wait_read, no_throw);
                if (error) co_return;
            } else {
                co_await pause(accept_pause);
            }
        }
    }

    awaitable<void> pause(Clock::duration time) {
        asio::steady_timer timer{news.get_executor(), time};
        co_await timer.async_wait(no_throw);
    }

    /// Ends when something has changed that somebody could wait for.
    awaitable<void> wait_for_news(Clock::time_point deadline) {
        using namespace asio::experimental::awaitable_operators;
        asio::steady_timer late{news.get_executor(), deadline};
        co_await (news.async_wait(no_throw) || late.async_wait(no_throw));
    }

    static awaitable<void> serve(std::shared_ptr<Core> self, UniqueFd client) {
        std::shared_ptr<Session> session;
        try {
            Connection connection{self->listener.get_executor()};
            connection.assign(client.get());
            (void)client.release();
            session = std::make_shared<Session>(std::move(connection));
        } catch (const std::exception&) {
            co_return;  // no descriptors just now: the client sees the end of its connection
        }
        self->sessions.push_back(session);
        try {
            co_await self->start(session);
            co_await self->mind(*session);
        } catch (const ClientLeft&) {
        } catch (const std::exception& failure) {
            if (!self->over) session->tell_error(failure.what(), status::failed);
        }
        self->sessions.remove(session);
        co_await self->end(session);
    }

    awaitable<std::optional<json::object>> receive(Session& session) {
        const auto [error] =
            co_await session.connection.async_wait(Connection::wait_read, no_throw);
        if (error) co_return std::nullopt;
        const auto message = receive_with_fds(session.connection.native_handle(), 0);
        if (!message) co_return std::nullopt;
        boost::system::error_code wrong;
        const json::parse_options options{.allow_invalid_utf8 = true};  // words are any bytes
        const auto value = json::parse(message->text, wrong, {}, options);
        if (wrong || !value.is_object()) throw Failure("this is no guest command");
        co_return value.get_object();
    }

    /// With ports, if the guest has what it takes.
    awaitable<void> start(const std::shared_ptr<Session>& session) {
        const bool taken = co_await take_request(*session);
        if (!taken || session->shell != 0) co_return;
        co_await wait_for_agent(*session);
        const bool has_ports = co_await try_with_ports(session);
        if (!has_ports) start_capture(session);
    }

    void start_capture(const std::shared_ptr<Session>& session) {
        if (session->guest_command.terminal)
            throw Failure("the guest has no terminal for the command (it has eight at most)");
        if (captures == most_captures)
            throw Failure("as many commands as can run in the guest already");
        session->tell({{"note",
                        "the guest has no shell, or no serial ports for a command's streams: "
                        "output comes at its end"}});
        asio::co_spawn(listener.get_executor(), capture(shared_from_this(), session),
                       asio::detached);
    }

    awaitable<bool> try_with_ports(std::shared_ptr<Session> session) {
        if (portless) co_return false;
        try {
            co_await start_with_ports(*session);
            co_return true;
        } catch (const NoPorts&) {
            portless = !session->guest_command.terminal;  // which takes more
            session->shell = 0;
        }
        const Turn turn{*this};
        co_await turn.came();
        co_await unplug(session);
        co_return false;
    }

    /// False where the client has left.
    awaitable<bool> take_request(Session& session) {
        const auto request = co_await receive(session);
        if (!request) co_return false;
        session.guest_command = parse_guest_command(*request);
        session.secret = text_in(*request, "secret");
        co_await take_sockets(session);
        std::vector<int> ends;
        for (const auto& socket : session.sockets) ends.push_back(socket.client.get());
        const bool sent =
            send_with_fds(session.connection.native_handle(), R"({"streams": true})", ends);
        co_return sent;
    }

    awaitable<void> take_sockets(Session& session) {
        const bool terminal = session.guest_command.terminal.has_value();
        std::optional<Turn> turn;
        if (!terminal && !ready.empty()) {
            // By then the guest has its news.
            if (ready_shell != 0 && !awakening) co_await wait_for_agent(session);
            turn.emplace(*this);  // while the machine is saved it waits
            co_await turn->came();
        }
        if (!terminal && !ready.empty() && give_to_ready_shell(session)) {
            take_ready(session);
            if (session.shell == 0) co_return;
            session.opened.insert(session.ports.begin(), session.ports.end());
            for (auto& socket : session.sockets) socket.qemu.reset();
            co_return;
        }
        make_sockets(session);
    }

    void take_ready(Session& session) {
        session.tag = ready_tag;
        session.sockets = std::exchange(ready, {});
        for (const char* stream : stream_names) session.ports.push_back(port_id(stream, ready_tag));
        session.end_port = session.ports.back();
    }

    /// Before the client has the streams, which the command comes by. False where it is too long:
    /// the guest has not taken what is sent before, and nobody waits for that here.
    bool give_to_ready_shell(Session& session) {
        if (ready_shell == 0) return true;
        const auto text = guest_request((awakening ? awaken_call(*awakening) : std::string{}) +
                                            guest_becomes(session.guest_command, session.secret),
                                        session.secret);
        if (text.size() > longest_request) return false;
        const auto sent = ::send(ready.front().client.get(), text.data(), text.size(),
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent != static_cast<ssize_t>(text.size())) return false;
        awakening.reset();
        session.shell = std::exchange(ready_shell, 0);
        return true;
    }

    /// A shell that waits where the ports of the next command are ready, if the guest has one.
    /// Where a command has used those, others are plugged in, to where the machine had them: at the
    /// first numbers of the bus that are free.
    awaitable<void> start_ready_shell() {
        if (ready_shell != 0 && awakener_waits) co_return;
        if (ready_shell != 0) {
            co_await ask_ready_shell(guest_prepares, ready_patience);
            awakener_waits = true;
        }
        if (ready_shell != 0 || !agent_up || portless) co_return;
        if (ready.empty()) co_await plug_in_ready();
        std::int64_t shell = 0;
        bool waits = false;
        try {
            auto arguments = guest_wait_arguments(ready_tag);
            const auto answer =
                co_await agent.execute("guest-exec", std::move(arguments), ready_patience);
            shell = number_in(answer, "pid");
            waits = co_await hear_that_it_waits(shell, ready_patience);
        } catch (const qmp::CommandError&) {
            co_return;  // the agent starts none
        } catch (const ShellEnded&) {
            co_return;
        } catch (const std::exception&) {
            // It has another agent by now, say.
        }
        if (waits) {
            ready_shell = shell;
            awakener_waits = true;
            unanswered = 0;
        } else {
            co_await give_up_ready();
        }
    }

    /// Whoever opens them yet is not known.
    awaitable<void> give_up_ready() {
        retired.push_back(std::make_shared<Session>(Connection{listener.get_executor()}));
        take_ready(*retired.back());
        co_await unplug_all();
    }

    /// The shell that waits does something, and waits again, or is no more.
    awaitable<void> ask_ready_shell(std::string words, Clock::duration patience) {
        const auto text = guest_request(words, random_id());
        bool waits = ::send(ready.front().client.get(), text.data(), text.size(),
                            MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
        try {
            if (waits) waits = co_await hear_that_it_waits(ready_shell, patience);
        } catch (const ShellEnded&) {
            waits = false;
        } catch (const std::exception&) {
            waits = false;  // nobody knows what it does
        }
        if (waits) co_return;
        ready_shell = 0;
        co_await give_up_ready();
    }

    static awaitable<bool> tell(std::shared_ptr<Core> self, Awakening news) {
        const Turn turn{*self};
        co_await turn.came();
        if (self->ready_shell == 0) co_return false;
        self->awakener_waits = false;
        co_await self->ask_ready_shell(awaken_call(news), command_timeout);
        co_return self->ready_shell != 0;
    }

    /// Until the shell says so. False where it is silent; throws ShellEnded.
    awaitable<bool> hear_that_it_waits(std::int64_t shell, Clock::duration patience) {
        using namespace asio::experimental::awaitable_operators;
        UniqueFd copy{::fcntl(ready.back().client.get(), F_DUPFD_CLOEXEC, 0)};
        auto stream = to_stream(listener.get_executor(), copy);
        asio::steady_timer late{listener.get_executor()};
        const auto deadline = Clock::now() + patience;
        const auto boot = boots;
        std::string text;
        Clock::duration pause = reap_pause;
        while (text.size() < guest_waits.size() && Clock::now() < deadline) {
            late.expires_after(pause);
            pause = std::min<Clock::duration>(2 * pause, question_pause);
            co_await (stream.async_wait(Stream::wait_read, no_throw) || late.async_wait(no_throw));
            std::array<char, guest_waits.size()> bytes;
            const auto size = ::recv(stream.native_handle(), bytes.data(),
                                     bytes.size() - text.size(), MSG_DONTWAIT);
            if (size > 0) text.append(bytes.data(), static_cast<std::size_t>(size));
            if (size > 0) continue;
            if (size == 0 || boots != boot) throw ShellEnded{};
            const auto end = co_await ask_for_end(shell);
            if (end) throw ShellEnded{};
        }
        co_return text == guest_waits;
    }

    awaitable<void> plug_in_ready() {
        auto session = std::make_shared<Session>(Connection{listener.get_executor()});
        make_sockets(*session);
        try {
            co_await plug_in_first(*session);
        } catch (const std::exception&) {
            retired.push_back(session);
            throw;
        }
        ready_tag = session->tag;
        ready = std::move(session->sockets);
    }

    void make_sockets(Session& session) {
        session.tag = ++count;
        const bool terminal = session.guest_command.terminal.has_value();
        for (std::size_t i = 0; i < (terminal ? 2 : stream_names.size()); ++i) {
            auto [client, qemu] = make_socket_pair("make a command's streams");
            session.sockets.push_back({std::move(client), std::move(qemu)});
        }
    }

    awaitable<void> start_with_ports(Session& session) {
        const bool terminal = session.guest_command.terminal.has_value();
        const Turn turn{*this};
        co_await turn.came();
        co_await wait_for_agent(session);  // it may have gone again
        if (has_left(session)) throw ClientLeft{};
        co_await unplug_retired();
        if (session.ports.empty()) co_await plug_in_first(session);
        session.shell = co_await start_shell(session);
        co_await wait_for_ports(session);
        // By then the guest's shell has seen which consoles there were before this one.
        if (terminal) co_await plug_in(session, "terminal", session.sockets[0]);
        co_await wait_for_ports(session);
        for (auto& socket : session.sockets) socket.qemu.reset();
        unanswered = 0;
        co_await unplug_retired();
    }

    /// The agent's child.
    awaitable<std::int64_t> start_shell(const Session& session) {
        try {
            auto arguments =
                guest_exec_arguments(session.guest_command, session.tag, session.secret, awakening);
            const auto answer =
                co_await agent.execute("guest-exec", std::move(arguments), command_timeout);
            awakening.reset();
            co_return number_in(answer, "pid");
        } catch (const qmp::CommandError& refusal) {
            if (status_of_refusal(refusal.desc) == status::not_found) throw NoPorts{};
            throw Failure("the guest agent: guest-exec: " + refusal.desc);
        } catch (const std::system_error& failure) {
            throw Failure("the guest agent: " + failure.code().message());
        }
    }

    /// What a client that left has closed can be read to its end at once.
    static bool has_left(Session& session) {
        pollfd client{session.connection.native_handle(), POLLRDHUP, 0};
        return ::poll(&client, 1, 0) == 1;
    }

    /// The right to plug and to unplug ports, for as long as it lives.
    class Turn {
      public:
        explicit Turn(Core& core) : core_(core) { core_.turns.push_back(this); }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() {
            std::erase(core_.turns, this);
            core_.news.cancel();
        }
        [[nodiscard]] awaitable<void> came() const {
            while (core_.turns.front() != this)
                co_await core_.wait_for_news(Clock::time_point::max());
        }

      private:
        Core& core_;
    };

    awaitable<void> wait_for_agent(Session& session) {
        const auto begin = Clock::now();
        const auto deadline = std::max(begin + agent_patience, booted);
        bool told = false;
        while (!agent_up) {
            const auto now = Clock::now();
            if (now >= deadline)
                throw Failure(
                    "no guest agent answers (is qemu-guest-agent installed in the guest, "
                    "and running?)");
            if (now >= begin + silent_patience && !std::exchange(told, true))
                session.tell({{"waiting", "for the guest agent"}});
            co_await wait_for_news(told ? deadline : begin + silent_patience);
        }
    }

    /// All but a terminal.
    awaitable<void> plug_in_first(Session& session) {
        if (plugged + session.sockets.size() > most_plugged)
            throw Failure("as many commands as can run in the guest already");
        if (!session.guest_command.terminal) {
            co_await plug_in(session, "in", session.sockets[0]);
            co_await plug_in(session, "out", session.sockets[1]);
        }
        co_await plug_in(session, "err", session.sockets.back());
        session.end_port = session.ports.back();
    }

    awaitable<void> plug_in(Session& session, std::string stream, StreamSockets& socket) {
        const auto id = port_id(stream, session.tag);
        const auto step = std::string{"plug in a serial port"};
        co_await in_words(step, [&] {
            json::object name{{"fdname", id}};
            return monitor.execute("getfd", std::move(name), socket.qemu.get(), command_timeout);
        });
        co_await in_words(step, [&] {
            return monitor.execute("chardev-add", socket_chardev(id), command_timeout);
        });
        session.ports.push_back(id);
        ++plugged;
        unanswered += messages_of_port;
        co_await in_words(step, [&] {
            json::object device{{"driver", stream == "terminal" ? "virtconsole" : "virtserialport"},
                                {"id", id},
                                {"chardev", id},
                                {"name", guest_port_name(stream, session.tag)},
                                {"bus", port_bus}};
            return monitor.execute("device_add", std::move(device), command_timeout);
        });
    }

    /// Until the guest has opened all that were plugged in.
    awaitable<void> wait_for_ports(Session& session) {
        const auto deadline = Clock::now() + open_patience;
        auto next_question = Clock::now() + question_pause;
        while (session.opened.size() < session.ports.size() && !session.lost) {
            if (Clock::now() >= deadline)
                throw Failure(
                    fmt::format("the guest has not opened the command's serial ports after {} s",
                                open_patience / 1s));
            if (Clock::now() >= next_question) {
                const auto end = co_await ask_for_end(session.shell);
                if (end && number_in(*end, "exitcode") == guest_has_no_ports) throw NoPorts{};
                next_question = Clock::now() + question_pause;
            }
            co_await wait_for_news(std::min(deadline, next_question));
        }
    }

    /// How the agent's child has ended, which the agent keeps until it is asked; nothing where it
    /// has not.
    awaitable<std::optional<json::object>> ask_for_end(std::int64_t pid) {
        json::object arguments{{"pid", pid}};
        const auto answer =
            co_await agent.execute("guest-exec-status", std::move(arguments), command_timeout);
        if (!answer.is_object()) co_return std::nullopt;
        const auto* exited = answer.get_object().if_contains("exited");
        if (exited != nullptr && *exited == false) co_return std::nullopt;
        co_return answer.get_object();
    }

    /// The same of one that is about to end.
    awaitable<std::optional<json::object>> reap(std::int64_t pid) {
        for (int i = 0; i < reap_questions; ++i) {
            auto end = co_await ask_for_end(pid);
            if (end) co_return end;
            co_await pause(reap_pause);
        }
        co_return std::nullopt;
    }

    /// The agent takes the command's input as one piece and keeps its output until the end.
    static awaitable<void> capture(std::shared_ptr<Core> self, std::shared_ptr<Session> session) {
        ++self->captures;
        try {
            std::vector<Stream> streams;
            for (auto& socket : session->sockets)
                streams.push_back(to_stream(self->listener.get_executor(), socket.qemu));
            // Who waits is to see the end of a client that is gone.
            for (auto& socket : session->sockets) socket.client.reset();
            const auto input = co_await read_all(streams.front());
            if (!session->connection.is_open()) throw ClientLeft{};
            auto arguments = guest_capture_arguments(session->guest_command, input);
            const auto answer =
                co_await self->agent.execute("guest-exec", std::move(arguments), command_timeout);
            const auto pid = answer.is_object() ? number_in(answer.get_object(), "pid") : 0;
            co_await write(streams[2], guest_begin(session->secret, pid));
            const auto wanted = [session] { return session->connection.is_open(); };
            const auto end = co_await capture_end(self->agent, pid, wanted);
            if (!end) throw ClientLeft{};
            if (end->truncated)
                session->tell({{"note",
                                "the guest agent kept 16 MiB of the command's output, and "
                                "nothing after that"}});
            co_await write(streams[1], end->out + guest_end(session->secret, ""));
            co_await write(streams[2],
                           end->err + guest_end(session->secret, std::to_string(end->exit_status)));
        } catch (const ClientLeft&) {
        } catch (const qmp::CommandError& refusal) {
            session->tell_error("the guest agent: guest-exec: " + refusal.desc,
                                status_of_refusal(refusal.desc));
        } catch (const std::exception& failure) {
            session->tell_error(failure.what(), status::failed);
        }
        --self->captures;
    }

    using Stream = asio::local::stream_protocol::socket;

    static Stream to_stream(const asio::any_io_executor& executor, UniqueFd& socket) {
        Stream stream{executor};
        stream.assign(asio::local::stream_protocol{}, socket.get());
        (void)socket.release();
        return stream;
    }

    static awaitable<std::string> read_all(Stream& stream) {
        std::string text;
        co_await asio::async_read(stream, asio::dynamic_buffer(text, largest_input + 1), no_throw);
        if (text.size() > largest_input)
            throw Failure(fmt::format("the guest agent takes no more than {} MiB of input",
                                      largest_input / 1024 / 1024));
        co_return text;
    }

    static awaitable<void> write(Stream& stream, std::string text) {
        co_await asio::async_write(stream, asio::buffer(text), no_throw);
    }

    /// Until the client leaves.
    awaitable<void> mind(Session& session) {
        while (const auto request = co_await receive(session)) {
            session.command = number_in(*request, "pid");
            session.ended = session.command == 0;
            const auto signal = text_in(*request, "signal");
            if (!signal.empty()) co_await kill(session, signal);
            const auto terminal = text_in(*request, "resize");
            if (!terminal.empty()) co_await resize(session, terminal, *request);
        }
    }

    awaitable<void> resize(const Session& session, std::string terminal, json::object request) {
        if (session.lost || !agent_up) co_return;
        const TerminalSize size{static_cast<unsigned>(number_in(request, "rows")),
                                static_cast<unsigned>(number_in(request, "columns"))};
        try {
            auto arguments = guest_resize_arguments(terminal, size);
            const auto answer =
                co_await agent.execute("guest-exec", std::move(arguments), command_timeout);
            co_await reap(number_in(answer, "pid"));
        } catch (const std::exception&) {
            // The command goes on with the size that it has.
        }
    }

    awaitable<void> kill(const Session& session, std::string signal) {
        if (session.command <= 0) co_return;
        // A command that did not wait for the agent may be faster.
        const auto deadline = std::min(booted, Clock::now() + agent_patience);
        while (!agent_up && !session.lost && Clock::now() < deadline)
            co_await wait_for_news(deadline);
        if (session.lost || !agent_up) co_return;
        try {
            auto arguments = guest_kill_arguments(session.command, signal);
            const auto answer =
                co_await agent.execute("guest-exec", std::move(arguments), command_timeout);
            co_await reap(number_in(answer, "pid"));
        } catch (const std::exception&) {
            // It has ended, or its agent does not answer.
        }
    }

    /// The port of stderr is closed, so that the shell which tells how the command ended is gone.
    /// It has told that, or says by its own end why not.
    static awaitable<void> find_end(std::shared_ptr<Core> self, std::shared_ptr<Session> session) {
        std::string why = "the guest agent is gone, and the command with it";
        bool known = true;
        try {
            const auto end = co_await self->reap(std::exchange(session->shell, 0));
            if (!end) co_return;
            const auto signal = number_in(*end, "signal");
            const auto code = number_in(*end, "exitcode");
            if (signal == 0 && (code == 0 || code == guest_has_no_ports)) co_return;
            why = signal != 0 ? fmt::format("the command's shell was ended by signal {}", signal)
                              : fmt::format("the command's shell ended too early, with {}", code);
        } catch (const std::exception&) {
            known = false;
        }
        if (!known) co_await self->pause(late_word);
        session->tell_error(why, status::guest_died);
    }

    /// Of a client that left before it knew: its end of stderr is ours, too. A command that is not
    /// started by then has no shell to start it any more.
    awaitable<void> find_command(Session& session) {
        if (session.shell == 0 || session.sockets.empty()) co_return;
        GuestStderr guest{session.secret};
        std::array<char, 4096> bytes;
        for (int i = 0; i < reap_questions; ++i) {
            const auto size = ::recv(session.sockets.back().client.get(), bytes.data(),
                                     bytes.size(), MSG_DONTWAIT);
            if (size > 0) guest.feed({bytes.data(), static_cast<std::size_t>(size)});
            if (guest.pid() || size == 0) break;
            co_await pause(reap_pause);
        }
        session.command = guest.pid().value_or(session.shell);
    }

    awaitable<void> end(std::shared_ptr<Session> session) {
        boost::system::error_code ignored;
        session->connection.close(ignored);
        try {
            if (!session->ended && session->command == 0) co_await find_command(*session);
            if (!session->ended) co_await kill(*session, "HUP");
            if (!session->ports.empty()) {
                retired.push_back(session);
                const Turn turn{*this};
                co_await turn.came();
                co_await unplug_retired();
            }
            if (session->shell != 0 && !session->lost && agent_up) co_await reap(session->shell);
        } catch (const std::exception&) {
            // QEMU is on its way out, or the agent.
        }
    }

    /// As many as the guest can be told now. Where nobody there listens to it yet, that is all.
    awaitable<void> unplug_retired() {
        while (!retired.empty() && (!agent_up || unanswered < most_unanswered)) {
            const auto session = retired.front();
            retired.pop_front();
            co_await unplug(session);
        }
    }

    [[nodiscard]] bool is_ready(const std::string& id) const {
        return !ready.empty() &&
               std::any_of(stream_names.begin(), stream_names.end(),
                           [&](const char* stream) { return id == port_id(stream, ready_tag); });
    }

    /// A turn that nobody else has meanwhile.
    struct Hold {
        explicit Hold(std::shared_ptr<Core> core_) : core(std::move(core_)), turn(*core) {}
        std::shared_ptr<Core> core;
        Turn turn;
    };

    [[nodiscard]] bool runs_command() const {
        return captures > 0 || std::any_of(sessions.begin(), sessions.end(),
                                           [](const auto& session) { return session->shell != 0; });
    }

    static awaitable<std::shared_ptr<void>> quiet(std::shared_ptr<Core> self, bool guest_runs) {
        if (!guest_runs && !self->retired.empty())
            throw Failure("commands that have ended have ports yet, and a paused guest keeps them");
        auto hold = std::make_shared<Hold>(self);
        co_await hold->turn.came();
        // One that has just ended is not told of yet.
        const auto end = Clock::now() + end_patience;
        while (self->runs_command()) {
            if (Clock::now() >= end)
                throw Failure("a command runs in the guest, and its connection cannot be saved");
            co_await self->wait_for_news(Clock::now() + reap_pause);
        }
        co_await self->unplug_all();
        if (guest_runs) co_await self->start_ready_shell();
        co_return hold;
    }

    /// All that no command has any more.
    awaitable<void> unplug_all() {
        const auto deadline = Clock::now() + unplug_patience;
        while (plugged > ready.size() || unplugging > 0) {
            if (Clock::now() >= deadline)
                throw Failure("the guest does not let go of a command's serial ports");
            co_await unplug_retired();
            if (retired.empty())
                co_await wait_for_news(Clock::now() + reap_pause);
            else
                co_await hear_from_guest();
        }
    }

    /// What it was told before it has taken, then: its kernel does that before its programs go on.
    awaitable<void> hear_from_guest() {
        const auto step = std::string{"the guest agent"};
        co_await in_words(step, [&] { return agent.execute("guest-ping", {}, command_timeout); });
        unanswered = 0;
    }

    /// QEMU takes its time until a device has let go of its chardev (RCU): nobody waits for that.
    awaitable<void> unplug(std::shared_ptr<Session> session) {
        const auto ids = std::exchange(session->ports, {});
        ++unplugging;
        for (const auto& id : ids) {
            --plugged;
            ++unanswered;
            going.insert(id);
            json::object device{{"id", id}};
            try {
                co_await monitor.execute("device_del", std::move(device), command_timeout);
            } catch (const qmp::CommandError&) {
                going.erase(id);  // it was never there
            }
        }
        asio::co_spawn(listener.get_executor(),
                       remove_chardevs(shared_from_this(), std::move(session), ids),
                       asio::detached);
    }

    /// Until the device has let go, it tells the guest that the host has closed the port when our
    /// socket is closed, and means by its number the port that has it by now
    /// (hw/char/virtio-console.c: chr_event). So the session's sockets are kept for as long.
    static awaitable<void> remove_chardevs(std::shared_ptr<Core> self,
                                           std::shared_ptr<Session> /*with its sockets*/,
                                           std::vector<std::string> ids) {
        const auto deadline = Clock::now() + unplug_patience;
        try {
            for (const auto& id : ids) {
                while (self->going.contains(id) && Clock::now() < deadline)
                    co_await self->wait_for_news(deadline);
                self->going.erase(id);
                json::object chardev{{"id", id}};
                co_await self->monitor.execute("chardev-remove", std::move(chardev),
                                               command_timeout);
            }
        } catch (const std::exception&) {
            // QEMU is on its way out.
        }
        --self->unplugging;
        self->news.cancel();
    }

    Connection listener;
    qmp::Client& monitor;
    qmp::Client& agent;
    asio::steady_timer news;  ///< cancelled to wake those who wait
    std::deque<const Turn*> turns;
    std::list<std::shared_ptr<Session>> sessions;
    unsigned long count;                           ///< the tag of the ports that came last
    std::vector<StreamSockets> ready;              ///< of ports that are plugged in already
    unsigned long ready_tag = count;               ///< theirs
    std::int64_t ready_shell;                      ///< that has opened them; 0: there is none
    bool awakener_waits = true;                    ///< a program beside it, that nobody used yet
    unsigned boots = 0;                            ///< of the guest, beyond the first
    std::deque<std::shared_ptr<Session>> retired;  ///< ended, and with ports
    std::set<std::string> going;                   ///< devices that were unplugged
    std::optional<Awakening> awakening;            ///< that the next command begins with
    std::size_t captures = 0;                      ///< commands that run without ports
    std::size_t plugged = 0;                       ///< ports
    unsigned unplugging = 0;                       ///< sessions whose ports are on their way out
    unsigned unanswered = 0;                       ///< messages to the guest about them
    const Clock::duration boot_patience;
    Clock::time_point booted = Clock::now() + boot_patience;  ///< it may take until then
    bool agent_up = false;
    bool portless = false;  ///< the guest, as a command has found
    bool over = false;
};

ExecService::ExecService(const asio::any_io_executor& executor, UniqueFd listener,
                         qmp::Client& monitor, qmp::Client& agent, Clock::duration boot_patience,
                         ReadyPorts ready)
    : core_(std::make_shared<Core>(executor, std::move(listener), monitor, agent, boot_patience,
                                   std::move(ready))) {
    asio::co_spawn(
        executor, [core = core_] { return core->accept(); }, asio::detached);
}

ExecService::~ExecService() {
    core_->over = true;
    boost::system::error_code ignored;
    core_->listener.close(ignored);
    for (const auto& session : core_->sessions) session->connection.close(ignored);
    core_->news.cancel();
}

UniqueFd ExecService::connect() {
    auto [client, service] =
        make_socket_pair("run a command in the guest", SOCK_SEQPACKET | SOCK_NONBLOCK);
    asio::co_spawn(core_->listener.get_executor(), Core::serve(core_, std::move(service)),
                   asio::detached);
    return std::move(client);
}

awaitable<std::shared_ptr<void>> ExecService::quiet(bool guest_runs) {
    return Core::quiet(core_, guest_runs);
}

std::optional<unsigned long> ExecService::ready_ports() const {
    return core_->ready.empty() ? std::nullopt : std::optional{core_->ready_tag};
}

std::int64_t ExecService::ready_shell() const {
    return core_->ready_shell;
}

awaitable<bool> ExecService::tell(Awakening news) {
    return Core::tell(core_, std::move(news));
}

void ExecService::begin_with(Awakening awakening) {
    core_->awakening = std::move(awakening);
}

void ExecService::agent_is_up() {
    core_->agent_up = true;
    core_->portless = false;
    core_->news.cancel();
}

void ExecService::agent_is_down() {
    core_->agent_up = false;
    core_->booted = Clock::now();
}

void ExecService::port_changed(const std::string& id, bool open) {
    if (core_->is_ready(id)) {
        if (open)
            core_->unanswered = 0;  // the guest has heard of it, and of all before
        else
            core_->ready_shell = 0;
    }
    for (const auto& session : core_->sessions) {
        if (std::find(session->ports.begin(), session->ports.end(), id) == session->ports.end())
            continue;
        if (open) {
            session->opened.insert(id);
        } else if (id == session->end_port && session->shell != 0 && !session->lost) {
            asio::co_spawn(core_->listener.get_executor(), Core::find_end(core_, session),
                           asio::detached);
        }
    }
    core_->news.cancel();
}

void ExecService::device_deleted(const std::string& id) {
    core_->going.erase(id);
    core_->news.cancel();
}

void ExecService::guest_is_gone(const std::string& why) {
    core_->agent_up = false;
    core_->booted = Clock::now() + core_->boot_patience;
    core_->unanswered = 0;
    core_->ready_shell = 0;
    ++core_->boots;
    for (const auto& session : core_->sessions) {
        if (session->ports.empty()) continue;  // it waits for an agent, and goes on to
        session->lost = true;
        session->tell_error(why, status::guest_died);
    }
    core_->news.cancel();
}

}  // namespace qvm
