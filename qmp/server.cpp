#include "qmp/server.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <exception>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "qmp/error.h"
#include "qmp/server_protocol.h"

namespace qvm::qmp {

namespace asio = boost::asio;
namespace json = boost::json;
using boost::system::error_code;
using std::chrono::milliseconds;
using Unix = asio::local::stream_protocol;

namespace {

constexpr milliseconds accept_pause{100};

}  // namespace

// Everything but the handle.
struct Server::Core : std::enable_shared_from_this<Core> {
    Core(const asio::any_io_executor& executor, Greeting greeting_, Handler handler_)
        : greeting(std::move(greeting_)),
          handler(std::move(handler_)),
          acceptor(executor),
          pause(executor),
          news(executor) {}

    void listen(int descriptor);
    void accept();
    void accept_one();
    void accept_later();
    void admit(int descriptor);
    void forget(const std::shared_ptr<Connection>& connection);
    bool has_room() const;
    std::shared_ptr<Connection> longest_idle() const;
    void close();
    static asio::awaitable<void> finish(std::shared_ptr<Core> self, milliseconds grace);

    Greeting greeting;
    Handler handler;
    Unix::acceptor acceptor;
    asio::steady_timer pause;                              // before the next attempt to accept
    asio::steady_timer news;                               // cancelled to wake finish()
    std::vector<std::shared_ptr<Connection>> connections;  // in the order in which they came
    bool accepting = false;
    bool finishing = false;
};

// One client. Whatever is under way for it holds it, so that it outlives its being forgotten.
struct Server::Connection : std::enable_shared_from_this<Connection> {
    explicit Connection(std::shared_ptr<Core> core_)
        : core(std::move(core_)), protocol(core->greeting), socket(core->acceptor.get_executor()) {}

    void watch();
    bool hung_up();
    void advance();
    void read();
    void write();
    void execute(Request request);
    void answer(const std::optional<json::value>& id, std::exception_ptr failure,
                const json::value& value);
    void close();
    void cancel();
    static asio::awaitable<json::value> handle(std::shared_ptr<Connection> self, Request request);

    std::shared_ptr<Core> core;
    ServerProtocol protocol;
    Unix::socket socket;
    asio::cancellation_signal cancellation;  // of the handler
    std::string sending;                     // empty while nothing is being sent
    std::array<char, 16384> input;
    bool reading = false;
    bool input_over = false;  // the client has shut down its writing side
    bool handling = false;
    bool cancellable = false;  // the handler has begun
    bool closed = false;
};

// The end of input says nothing about a client, but a hangup does: the peer has closed its socket,
// or shut down both directions of it. Asio's reactor may report the hangup of a connection that was
// closed in the same turn to the one that was accepted after it, hence the second look.
void Server::Connection::watch() {
    socket.async_wait(asio::socket_base::wait_error, [self = shared_from_this()](error_code ec) {
        if (!ec && !self->closed && !self->hung_up()) return self->watch();
        self->close();
    });
}

bool Server::Connection::hung_up() {
    pollfd descriptor{socket.native_handle(), 0, 0};
    return ::poll(&descriptor, 1, 0) != 0;
}

// Does all that can be done now. Called whenever something may have changed.
void Server::Connection::advance() {
    if (closed) return;
    if (protocol.state() == ServerState::overrun) return close();
    if (!handling && !core->finishing)
        if (auto request = protocol.next_request()) execute(std::move(*request));
    write();
    read();
    const bool last = input_over || core->finishing || protocol.state() == ServerState::closing;
    if (last && !handling && sending.empty()) close();
}

void Server::Connection::read() {
    if (reading || input_over || !protocol.wants_input()) return;
    reading = true;
    socket.async_read_some(asio::buffer(input),
                           [self = shared_from_this()](error_code ec, std::size_t size) {
                               self->reading = false;
                               if (ec && ec != asio::error::eof) return self->close();
                               self->input_over = bool(ec);
                               // The end of input ends the last line as well.
                               self->protocol.feed(ec ? std::string_view("\n")
                                                      : std::string_view(self->input.data(), size));
                               self->advance();
                           });
}

void Server::Connection::write() {
    if (!sending.empty()) return;
    sending = protocol.take_output();
    if (sending.empty()) return;
    asio::async_write(socket, asio::buffer(sending),
                      [self = shared_from_this()](error_code ec, std::size_t) {
                          if (ec) return self->close();
                          self->sending.clear();
                          self->advance();
                      });
}

void Server::Connection::execute(Request request) {
    handling = true;
    auto id = request.id;
    auto answered = [self = shared_from_this(), id = std::move(id)](std::exception_ptr failure,
                                                                    const json::value& value) {
        self->handling = self->cancellable = false;
        if (self->closed) return;
        self->answer(id, failure, value);
        self->advance();
        self->core->accept();  // who is idle now may have to make room
    };
    asio::co_spawn(socket.get_executor(), handle(shared_from_this(), std::move(request)),
                   asio::bind_cancellation_slot(cancellation.slot(), std::move(answered)));
}

// The handler is called from the executor's own loop: when it comes, all may be over, and
// a coroutine that has been there is one that co_spawn can end after its cancellation (before,
// Boost 1.81 would throw into the executor).
asio::awaitable<json::value> Server::Connection::handle(std::shared_ptr<Connection> self,
                                                        Request request) {
    co_await asio::post(asio::use_awaitable);
    if (self->closed) co_return nullptr;
    self->cancellable = true;
    co_return co_await self->core->handler(std::move(request));
}

void Server::Connection::answer(const std::optional<json::value>& id, std::exception_ptr failure,
                                const json::value& value) {
    try {
        if (failure) std::rethrow_exception(failure);
        protocol.reply(id, value);
    } catch (const CommandError& e) {
        protocol.refuse(id, e.error_class, e.desc);
    } catch (const std::exception& e) {
        protocol.refuse(id, "GenericError", e.what());
    }
}

void Server::Connection::close() {
    if (std::exchange(closed, true)) return;
    const auto self = shared_from_this();
    error_code ignored;
    socket.close(ignored);
    core->forget(self);
    asio::dispatch(core->acceptor.get_executor(), [self] { self->cancel(); });
}

// Runs on the executor, as otherwise co_spawn would put it off till the signal may be gone.
// Terminal cancellation is the only kind that co_spawn lets through.
void Server::Connection::cancel() {
    if (cancellable) cancellation.emit(asio::cancellation_type::terminal);
}

void Server::Core::listen(int descriptor) {
    error_code ec;
    acceptor.assign(Unix(), descriptor, ec);
    if (ec) {
        ::close(descriptor);
        throw std::system_error(ec, "listen on the QMP socket");
    }
    acceptor.native_non_blocking(true);
    accept();
}

void Server::Core::accept() {
    if (accepting || !acceptor.is_open() || !has_room()) return;
    accepting = true;
    acceptor.async_wait(asio::socket_base::wait_read, [self = shared_from_this()](error_code ec) {
        self->accepting = false;
        if (!ec && self->acceptor.is_open()) self->accept_one();
    });
}

// Asio's own accept would leave a moment in which a child that is started inherits the descriptor.
void Server::Core::accept_one() {
    if (!has_room()) return;  // since this was waited for
    const int descriptor =
        ::accept4(acceptor.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (descriptor < 0 && errno != EAGAIN) return accept_later();
    if (descriptor >= 0) admit(descriptor);
    accept();
}

// The client who waits in the backlog would make the socket readable again at once.
void Server::Core::accept_later() {
    accepting = true;
    pause.expires_after(accept_pause);
    pause.async_wait([self = shared_from_this()](error_code) {
        self->accepting = false;
        self->accept();
    });
}

void Server::Core::admit(int descriptor) {
    const auto connection = std::make_shared<Connection>(shared_from_this());
    error_code ec;
    connection->socket.assign(Unix(), descriptor, ec);
    if (ec) {
        ::close(descriptor);
        return;
    }
    if (connections.size() >= max_clients)
        if (const auto idle = longest_idle()) idle->close();
    connections.push_back(connection);
    connection->watch();
    connection->advance();
}

void Server::Core::forget(const std::shared_ptr<Connection>& connection) {
    std::erase(connections, connection);
    news.cancel();
    accept();
}

bool Server::Core::has_room() const {
    return connections.size() < max_clients || longest_idle();
}

// Of those for whom nothing is under way, the one that came first.
std::shared_ptr<Server::Connection> Server::Core::longest_idle() const {
    const auto found =
        std::find_if(connections.begin(), connections.end(), [](const auto& connection) {
            return !connection->handling && connection->sending.empty();
        });
    return found == connections.end() ? nullptr : *found;
}

void Server::Core::close() {
    error_code ignored;
    acceptor.close(ignored);
    pause.cancel();
    // A copy, since connections that are closed leave.
    for (const auto& connection : std::vector(connections)) connection->close();
}

asio::awaitable<void> Server::Core::finish(std::shared_ptr<Core> self, milliseconds grace) {
    const auto end = std::chrono::steady_clock::now() + grace;
    error_code ignored;
    self->acceptor.close(ignored);
    self->finishing = true;
    for (const auto& connection : std::vector(self->connections)) connection->advance();

    self->news.expires_at(end);
    while (!self->connections.empty() && std::chrono::steady_clock::now() < end)
        co_await self->news.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    self->close();
}

Server::Server(asio::any_io_executor executor, int listening_descriptor, Greeting greeting,
               Handler handler)
    : core_(std::make_shared<Core>(executor, std::move(greeting), std::move(handler))) {
    core_->listen(listening_descriptor);
}

Server::~Server() {
    core_->close();
}

void Server::broadcast(const Event& event) {
    for (const auto& connection : std::vector(core_->connections)) {
        connection->protocol.event(event);
        connection->advance();
    }
}

// The coroutine starts only when it is awaited, and takes along what the server may not have then.
asio::awaitable<void> Server::finish(milliseconds grace) {
    return Core::finish(core_, grace);
}

}  // namespace qvm::qmp
