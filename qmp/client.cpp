#include "qmp/client.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <string>
#include <utility>

namespace qvm::qmp {

namespace asio = boost::asio;
namespace json = boost::json;
using boost::system::error_code;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

// So that adding it to the clock cannot overflow.
constexpr milliseconds longest_timeout = std::chrono::hours(24 * 365);

// A guest agent reads 4096 bytes at a time through a GIOChannel, whose own buffer may hold the rest
// of what it was sent: that is looked at when more comes (glib/giounix.c: g_io_unix_prepare, of a
// watch for G_IO_IN | G_IO_HUP, as qga/channel-posix.c has it). So an agent that does not answer is
// sent a line's end now and then, which is nothing to its parser.
constexpr milliseconds shortest_nudge{100}, longest_nudge{2000};

// The peer's end, in whatever way the kernel tells it, is one thing; what the kernel refuses us is
// another.
std::error_code end_of_connection(error_code ec) {
    if (!ec || ec == asio::error::eof || ec == asio::error::connection_reset ||
        ec == asio::error::broken_pipe)
        return Errc::disconnected;
    return ec;
}

// A duplicate, closed with the last who holds it.
std::shared_ptr<int> duplicate(int descriptor) {
    const int copy = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) throw std::system_error(errno, std::generic_category(), "duplicate a descriptor");
    return {new int(copy), [](int* fd) {
                ::close(*fd);
                delete fd;
            }};
}

// What there is to send: the descriptor goes with the first of the bytes.
struct Outgoing {
    std::string bytes;
    std::shared_ptr<int> descriptor;
};

// How much was sent, or -1 with errno. The descriptor is sent with the first byte, or not at all.
ssize_t send_now(int socket, const Outgoing& what) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    iovec data{const_cast<char*>(what.bytes.data()), what.bytes.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), what.descriptor.get(), sizeof(int));
    return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

// Throws what is not a value.
json::value value_of(Outcome outcome, const std::string& command) {
    if (auto* refusal = std::get_if<ErrorReply>(&outcome))
        throw CommandError(command, std::move(refusal->error_class), std::move(refusal->desc));
    if (const auto* error = std::get_if<std::error_code>(&outcome))
        throw std::system_error(*error, command);
    return std::get<json::value>(std::move(outcome));
}

}  // namespace

// Everything but the handle. Calls, the reader and the writer each hold it while they are under
// way, so that it outlives the Client for as long as any of them does.
struct Client::Connection : std::enable_shared_from_this<Connection> {
    struct Call;

    Connection(const asio::any_io_executor& executor, Dialect dialect_, std::size_t max_line)
        : dialect(dialect_), protocol(dialect_, max_line), socket(executor), news(executor) {
        news.expires_at(asio::steady_timer::time_point::max());
    }

    void read();
    void queue(std::shared_ptr<int> descriptor);
    void write();
    void write_descriptor();
    void written(error_code ec);
    void settle();
    void close(std::error_code why);
    asio::awaitable<std::error_code> read_until_end();
    asio::awaitable<json::value> answer(std::uint64_t id, std::string command,
                                        milliseconds timeout);
    static asio::awaitable<void> handshake(std::shared_ptr<Connection> self, milliseconds timeout);
    static asio::awaitable<json::value> execute(std::shared_ptr<Connection> self,
                                                std::string command, json::object arguments,
                                                std::shared_ptr<int> descriptor,
                                                milliseconds timeout);
    static asio::awaitable<std::optional<Event>> next_event(std::shared_ptr<Connection> self);

    Dialect dialect;
    Protocol protocol;
    asio::local::stream_protocol::socket socket;
    asio::steady_timer news;  // cancelled to wake next_event()
    std::map<std::uint64_t, Call*> calls;
    std::deque<Outgoing> outgoing;  // the first of them is being sent
    bool sending = false;
    std::array<char, 65536> input;
};

// A call that waits, in the frame of the coroutine that waits. However that one ends, by an
// answer, by an exception or by being destroyed, the call is forgotten with it.
struct Client::Connection::Call {
    Call(Connection& connection_, std::uint64_t id_)
        : connection(connection_), id(id_), timer(connection_.news.get_executor()) {
        connection.calls[id] = this;
    }
    ~Call() {
        connection.calls.erase(id);
        connection.protocol.abandon(id);
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    Connection& connection;
    std::uint64_t id;
    asio::steady_timer timer;  // cancelled when the outcome is there
    std::optional<Outcome> outcome;
};

// Sends what there is to send, then what has come up meanwhile. That the peer is gone is left to
// the reader, which has yet to see what the peer said before it went; shutdown makes sure that the
// reader comes to an end.
void Client::Connection::write() {
    if (sending || !socket.is_open()) return;
    queue(nullptr);
    if (outgoing.empty()) return;
    sending = true;
    if (outgoing.front().descriptor) return write_descriptor();
    asio::async_write(
        socket, asio::buffer(outgoing.front().bytes),
        [self = shared_from_this()](error_code ec, std::size_t) { self->written(ec); });
}

// Takes over what the protocol has to send.
void Client::Connection::queue(std::shared_ptr<int> descriptor) {
    auto bytes = protocol.take_output();
    if (!bytes.empty()) outgoing.push_back({std::move(bytes), std::move(descriptor)});
}

// Asio has no words for descriptors: the first bytes are sent by hand.
void Client::Connection::write_descriptor() {
    socket.async_wait(asio::socket_base::wait_write, [self = shared_from_this()](error_code ec) {
        auto& first = self->outgoing.front();
        const auto size = ec ? -1 : send_now(self->socket.native_handle(), first);
        if (ec || (size < 0 && errno != EAGAIN && errno != EINTR))
            return self->written(ec ? ec : error_code{errno, boost::system::system_category()});
        if (size < 0) return self->write_descriptor();
        first.descriptor.reset();
        first.bytes.erase(0, static_cast<std::size_t>(size));
        asio::async_write(self->socket, asio::buffer(first.bytes),
                          [self](error_code error, std::size_t) { self->written(error); });
    });
}

void Client::Connection::written(error_code ec) {
    sending = false;
    outgoing.pop_front();
    if (!ec) return write();
    outgoing.clear();
    const auto why = end_of_connection(ec);
    if (why != Errc::disconnected) return close(why);
    error_code ignored;
    socket.shutdown(asio::socket_base::shutdown_both, ignored);
}

// Hands out what the protocol has come to.
void Client::Connection::settle() {
    for (auto& [id, outcome] : protocol.take_completions()) {
        const auto call = calls.find(id);
        if (call == calls.end()) continue;
        call->second->outcome = std::move(outcome);
        call->second->timer.cancel();
    }
    news.cancel();
    write();
}

void Client::Connection::close(std::error_code why) {
    protocol.close(why);
    error_code ignored;
    socket.close(ignored);
    settle();
}

void Client::Connection::read() {
    asio::co_spawn(
        socket.get_executor(), read_until_end(),
        [self = shared_from_this()](std::exception_ptr, std::error_code why) { self->close(why); });
}

// Says why it is the end.
asio::awaitable<std::error_code> Client::Connection::read_until_end() {
    error_code ec;
    while (protocol.state() != State::closed) {
        const auto size = co_await socket.async_read_some(
            asio::buffer(input), asio::redirect_error(asio::use_awaitable, ec));
        if (ec) break;
        protocol.feed({input.data(), size});
        settle();
    }
    co_return end_of_connection(ec);
}

asio::awaitable<json::value> Client::Connection::answer(std::uint64_t id, std::string command,
                                                        milliseconds timeout) {
    Call call(*this, id);
    settle();
    error_code ec;
    const auto deadline = Clock::now() + std::min(timeout, longest_timeout);
    for (auto nudge = shortest_nudge; !call.outcome; nudge = std::min(2 * nudge, longest_nudge)) {
        const bool nudges = dialect == Dialect::guest_agent && Clock::now() + nudge < deadline;
        call.timer.expires_at(nudges ? Clock::now() + nudge : deadline);
        co_await call.timer.async_wait(asio::redirect_error(asio::use_awaitable, ec));
        if (call.outcome) break;
        if (ec) throw boost::system::system_error(ec);
        if (!nudges) throw std::system_error(Errc::timed_out, command);
        protocol.nudge();
        write();
    }
    co_return value_of(std::move(*call.outcome), command);
}

asio::awaitable<void> Client::Connection::handshake(std::shared_ptr<Connection> self,
                                                    milliseconds timeout) {
    const auto id = self->protocol.start(std::random_device{}());
    const bool agent = self->dialect == Dialect::guest_agent;
    co_await self->answer(id, agent ? "guest-sync-delimited" : "qmp_capabilities", timeout);
}

asio::awaitable<json::value> Client::Connection::execute(std::shared_ptr<Connection> self,
                                                         std::string command,
                                                         json::object arguments,
                                                         std::shared_ptr<int> descriptor,
                                                         milliseconds timeout) {
    if (descriptor) self->queue(nullptr);  // what waits goes without it
    const auto id = self->protocol.submit(command, arguments);
    if (descriptor) self->queue(std::move(descriptor));
    co_return co_await self->answer(id, std::move(command), timeout);
}

asio::awaitable<std::optional<Event>> Client::Connection::next_event(
    std::shared_ptr<Connection> self) {
    for (;;) {
        if (auto event = self->protocol.next_event()) co_return event;
        if (self->protocol.state() == State::closed) co_return std::nullopt;
        // When it is the coroutine that was cancelled, the next co_await throws.
        error_code ec;
        co_await self->news.async_wait(asio::redirect_error(asio::use_awaitable, ec));
    }
}

Client::Client(asio::any_io_executor executor, int descriptor, Dialect dialect,
               std::size_t max_line)
    : connection_(std::make_shared<Connection>(executor, dialect, max_line)) {
    error_code ec;
    connection_->socket.assign(asio::local::stream_protocol(), descriptor, ec);
    if (ec) {
        ::close(descriptor);
        throw std::system_error(ec, "use the QMP socket");
    }
    connection_->read();
}

Client::~Client() {
    close();
}

void Client::give_up() {
    for (auto& [id, call] : connection_->calls) {
        if (!call->outcome) call->outcome = make_error_code(Errc::timed_out);
        call->timer.cancel();
    }
}

// What follows takes the connection along: a coroutine starts only when it is awaited, and both
// the client and the caller's text may be gone by then.

asio::awaitable<void> Client::handshake(milliseconds timeout) {
    return Connection::handshake(connection_, timeout);
}

asio::awaitable<json::value> Client::execute(std::string_view command, json::object arguments,
                                             milliseconds timeout) {
    return Connection::execute(connection_, std::string(command), std::move(arguments), nullptr,
                               timeout);
}

asio::awaitable<json::value> Client::execute(std::string_view command, json::object arguments,
                                             int descriptor, milliseconds timeout) {
    return Connection::execute(connection_, std::string(command), std::move(arguments),
                               duplicate(descriptor), timeout);
}

asio::awaitable<std::optional<Event>> Client::next_event() {
    return Connection::next_event(connection_);
}

void Client::close() {
    connection_->close(Errc::closed);
}

bool Client::closed() const {
    return connection_->protocol.state() == State::closed;
}

std::error_code Client::error() const {
    return connection_->protocol.error();
}

const std::optional<Greeting>& Client::greeting() const {
    return connection_->protocol.greeting();
}

std::size_t Client::dropped_events() const {
    return connection_->protocol.dropped_events();
}

}  // namespace qvm::qmp
