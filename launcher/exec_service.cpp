#include "launcher/exec_service.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <deque>
#include <list>
#include <optional>
#include <set>

#include "launcher/failure.h"
#include "launcher/guest_command.h"
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
constexpr auto unplug_patience = 2s;   // with QEMU
constexpr auto accept_pause = 100ms;   // where there are no descriptors just now
constexpr auto reap_pause = 100ms;     // between two questions whether the agent's child has ended
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

std::string text_in(const json::object& object, const char* key) {
    const auto* value = object.if_contains(key);
    return value != nullptr && value->is_string() ? std::string{value->get_string()} : "";
}

std::int64_t number_in(const json::object& object, const char* key) {
    const auto* value = object.if_contains(key);
    return value != nullptr && value->is_int64() ? value->get_int64() : 0;
}

/// A socket that QEMU was given by getfd under this name (qapi/char.json).
json::object chardev_of(const std::string& id) {
    json::object address{{"type", "fd"}};
    address["data"] = json::object{{"str", id}};
    json::object backend{{"type", "socket"}};
    backend["data"] = json::object{{"addr", std::move(address)}, {"server", false}};
    json::object chardev{{"id", id}};
    chardev["backend"] = std::move(backend);
    return chardev;
}

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

struct SocketPair {
    SocketPair() {
        std::array<int, 2> ends;
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
            throw Failure("make a command's streams: " + std::generic_category().message(errno));
        client = UniqueFd{ends[0]};
        qemu = UniqueFd{ends[1]};
    }

    UniqueFd client;  ///< a copy: QEMU is not to see the end of a client that dies, but of the port
    UniqueFd qemu;  ///< until the guest has opened the port: who reads the other is to see its end
};

/// A client's command.
struct Session {
    explicit Session(Connection connection_) : connection(std::move(connection_)) {}

    void tell(const json::object& message) {
        if (connection.is_open())
            send_with_fds(connection.native_handle(), json::serialize(message), {});
    }
    void tell_guests_fault(const std::string& why) { tell({{"error", why}, {"guest", true}}); }

    Connection connection;
    std::string tag;
    std::vector<SocketPair> sockets;
    std::vector<std::string> ports;  ///< QEMU's ids, of devices as of their chardevs
    std::set<std::string> opened;    ///< those that the guest has opened
    std::string end_port;            ///< on which the guest says how the command ended
    std::int64_t shell = 0;          ///< the agent's child; 0 while there is none
    std::int64_t command = 0;        ///< as the client read it
    bool lost = false;               ///< the guest that ran it is no more
};

}  // namespace

struct ExecService::Core : std::enable_shared_from_this<Core> {
    Core(const asio::any_io_executor& executor, UniqueFd listener_, qmp::Client& monitor_,
         qmp::Client& agent_, Clock::time_point booted_)
        : listener(executor), monitor(monitor_), agent(agent_), news(executor), booted(booted_) {
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
            co_await self->start(*session);
            co_await self->mind(*session);
        } catch (const std::exception& failure) {
            if (!self->over) session->tell({{"error", failure.what()}});
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
        const auto value = json::parse(message->text, wrong);
        if (wrong || !value.is_object()) throw Failure("this is no guest command");
        co_return value.get_object();
    }

    awaitable<void> start(Session& session) {
        const auto request = co_await receive(session);
        if (!request) co_return;
        const auto command = parse_guest_command(*request);
        session.tag = std::to_string(++count);
        auto arguments = guest_exec_arguments(command, session.tag, text_in(*request, "secret"));
        const bool terminal = command.terminal.has_value();
        for (std::size_t i = 0; i < (terminal ? 2 : 3); ++i) session.sockets.emplace_back();
        std::vector<int> ends;
        for (const auto& socket : session.sockets) ends.push_back(socket.client.get());
        if (!send_with_fds(session.connection.native_handle(), R"({"streams": true})", ends))
            co_return;
        co_await wait_for_agent(session);
        const Turn turn{*this};
        co_await turn.came();
        co_await wait_for_agent(session);  // it may have gone again
        co_await unplug_retired();
        if (plugged + session.sockets.size() > most_plugged)
            throw Failure("as many commands as can run in the guest already");
        if (!terminal) {
            co_await plug_in(session, "in", session.sockets[0]);
            co_await plug_in(session, "out", session.sockets[1]);
        }
        co_await plug_in(session, "err", session.sockets.back());
        session.end_port = session.ports.back();
        const auto answer = co_await in_words("the guest agent: guest-exec", [&] {
            return agent.execute("guest-exec", std::move(arguments), command_timeout);
        });
        if (answer.is_object()) session.shell = number_in(answer.get_object(), "pid");
        co_await wait_for_ports(session);
        // By then the guest's shell has seen which consoles there were before this one.
        if (terminal) co_await plug_in(session, "terminal", session.sockets[0]);
        co_await wait_for_ports(session);
        for (auto& socket : session.sockets) socket.qemu.reset();
        unanswered = 0;
        co_await unplug_retired();
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

    awaitable<void> plug_in(Session& session, std::string stream, SocketPair& socket) {
        const auto id = fmt::format("exec-{}-{}", stream, session.tag);
        const auto step = std::string{"plug in a serial port"};
        co_await in_words(step, [&] {
            json::object name{{"fdname", id}};
            return monitor.execute("getfd", std::move(name), socket.qemu.get(), command_timeout);
        });
        co_await in_words(
            step, [&] { return monitor.execute("chardev-add", chardev_of(id), command_timeout); });
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
        while (session.opened.size() < session.ports.size() && !session.lost) {
            if (Clock::now() >= deadline)
                throw Failure(
                    fmt::format("the guest has not opened the command's serial ports "
                                "after {} s",
                                open_patience / 1s));
            co_await wait_for_news(deadline);
        }
    }

    /// Until the client leaves.
    awaitable<void> mind(Session& session) {
        while (const auto request = co_await receive(session)) {
            session.command = number_in(*request, "pid");
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
            if (answer.is_object()) co_await reap(number_in(answer.get_object(), "pid"));
        } catch (const std::exception&) {
            // The command goes on with the size that it has.
        }
    }

    awaitable<void> kill(const Session& session, std::string signal) {
        if (session.command <= 0 || session.lost || !agent_up) co_return;
        try {
            auto arguments = guest_kill_arguments(session.command, signal);
            const auto answer =
                co_await agent.execute("guest-exec", std::move(arguments), command_timeout);
            if (answer.is_object()) co_await reap(number_in(answer.get_object(), "pid"));
        } catch (const std::exception&) {
            // It has ended, or its agent does not answer.
        }
    }

    /// How the agent's child has ended, which the agent keeps until it is asked; nothing where it
    /// has not.
    awaitable<std::optional<json::object>> reap(std::int64_t pid) {
        for (int i = 0; i < reap_questions; ++i) {
            json::object arguments{{"pid", pid}};
            const auto answer =
                co_await agent.execute("guest-exec-status", std::move(arguments), command_timeout);
            const auto* exited =
                answer.is_object() ? answer.get_object().if_contains("exited") : nullptr;
            if (exited == nullptr || *exited == true) co_return answer.as_object();
            co_await pause(reap_pause);
        }
        co_return std::nullopt;
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
            if (signal == 0 && number_in(*end, "exitcode") == 0) co_return;
            why = signal != 0 ? fmt::format("the command's shell was ended by signal {}", signal)
                              : "the command's shell ended too early";
        } catch (const std::exception&) {
            known = false;
        }
        if (!known) co_await self->pause(late_word);
        session->tell_guests_fault(why);
    }

    awaitable<void> end(std::shared_ptr<Session> session) {
        boost::system::error_code ignored;
        session->connection.close(ignored);
        try {
            co_await kill(*session, "HUP");
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
            for (const auto& id : session->ports) co_await unplug(id);
        }
    }

    awaitable<void> unplug(const std::string& id) {
        json::object device{{"id", id}};
        auto chardev = device;
        --plugged;
        ++unanswered;
        deleting = id;
        try {
            co_await monitor.execute("device_del", std::move(device), command_timeout);
        } catch (const qmp::CommandError&) {
            deleting.clear();  // it was never there
        }
        // Until then it has hold of its chardev.
        const auto deadline = Clock::now() + unplug_patience;
        while (!deleting.empty() && Clock::now() < deadline) co_await wait_for_news(deadline);
        co_await monitor.execute("chardev-remove", std::move(chardev), command_timeout);
    }

    Connection listener;
    qmp::Client& monitor;
    qmp::Client& agent;
    asio::steady_timer news;  ///< cancelled to wake those who wait
    std::deque<const Turn*> turns;
    std::list<std::shared_ptr<Session>> sessions;
    std::deque<std::shared_ptr<Session>> retired;  ///< ended, and with ports
    std::string deleting;                          ///< a device
    std::size_t plugged = 0;                       ///< ports
    unsigned unanswered = 0;                       ///< messages to the guest about them
    const Clock::time_point booted;                ///< it may take until then
    bool agent_up = false;
    bool over = false;
    unsigned long count = 0;
};

ExecService::ExecService(const asio::any_io_executor& executor, UniqueFd listener,
                         qmp::Client& monitor, qmp::Client& agent, Clock::time_point booted)
    : core_(std::make_shared<Core>(executor, std::move(listener), monitor, agent, booted)) {
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
    std::array<int, 2> ends;
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) != 0)
        throw Failure("run a command in the guest: " + std::generic_category().message(errno));
    UniqueFd client{ends[0]};
    asio::co_spawn(core_->listener.get_executor(), Core::serve(core_, UniqueFd{ends[1]}),
                   asio::detached);
    return client;
}

void ExecService::agent_is_up() {
    core_->agent_up = true;
    core_->news.cancel();
}

void ExecService::agent_is_down() {
    core_->agent_up = false;
}

void ExecService::port_changed(const std::string& id, bool open) {
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
    if (core_->deleting == id) core_->deleting.clear();
    core_->news.cancel();
}

void ExecService::guest_is_gone(const std::string& why) {
    core_->agent_up = false;
    core_->unanswered = 0;
    for (const auto& session : core_->sessions) {
        if (session->ports.empty()) continue;  // it waits for an agent, and goes on to
        session->lost = true;
        session->tell_guests_fault(why);
    }
    core_->news.cancel();
}

}  // namespace qvm
