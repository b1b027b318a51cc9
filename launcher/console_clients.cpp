#include "launcher/console_clients.h"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <string>
#include <vector>

#include "launcher/step.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using asio::local::stream_protocol;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t most_clients = 64;

}  // namespace

struct ConsoleClients::Client : std::enable_shared_from_this<Client> {
    explicit Client(stream_protocol::socket socket_) : socket(std::move(socket_)) {}

    /// Sends what is waiting, and then what has come up meanwhile.
    void send() {
        if (!sending.empty() || waiting.empty() || !socket.is_open()) return;
        sending.swap(waiting);
        asio::async_write(socket, asio::buffer(sending),
                          [self = shared_from_this()](auto error, std::size_t) {
                              self->sending.clear();
                              if (error) return self->close();
                              self->send();
                          });
    }
    void close() {
        boost::system::error_code ignored;
        socket.close(ignored);
    }

    stream_protocol::socket socket;
    std::string sending;
    std::string waiting;
};

struct ConsoleClients::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor, int listener, Handlers handlers_)
        : acceptor(executor, stream_protocol{}, listener), handlers(std::move(handlers_)) {}

    awaitable<void> serve() {
        const auto self = shared_from_this();
        for (;;) {
            auto [error, socket] = co_await acceptor.async_accept(no_throw);
            if (!acceptor.is_open()) co_return;
            if (error) {  // for want of descriptors: it would fail again at once
                asio::steady_timer pause{acceptor.get_executor(), std::chrono::seconds{1}};
                co_await pause.async_wait(no_throw);
                continue;
            }
            if (clients.size() >= most_clients) continue;
            auto client = std::make_shared<Client>(std::move(socket));
            client->waiting = handlers.first_words();
            client->send();
            clients.push_back(client);
            asio::co_spawn(acceptor.get_executor(), serve(std::move(client)), asio::detached);
        }
    }

    awaitable<void> serve(std::shared_ptr<Client> client) {
        const auto self = shared_from_this();
        std::array<char, 4096> buffer;
        for (;;) {
            const auto [error, size] =
                co_await client->socket.async_read_some(asio::buffer(buffer), no_throw);
            if (error) break;
            if (!clients.empty() && clients.front() == client &&
                !co_await handlers.input({buffer.data(), size}))
                break;
        }
        client->close();
        std::erase(clients, client);
    }

    stream_protocol::acceptor acceptor;
    Handlers handlers;
    std::vector<std::shared_ptr<Client>> clients;
};

ConsoleClients::ConsoleClients(const asio::any_io_executor& executor, UniqueFd listener,
                               Handlers handlers)
    : state_(in_step("serve the console's socket", [&] {
          return std::make_shared<State>(executor, listener.get(), std::move(handlers));
      })) {
    (void)listener.release();  // the acceptor's now
    asio::co_spawn(executor, state_->serve(), asio::detached);
}

ConsoleClients::~ConsoleClients() {
    boost::system::error_code ignored;
    state_->acceptor.close(ignored);
    for (const auto& client : state_->clients) client->close();
}

void ConsoleClients::show(std::string_view bytes) {
    for (const auto& client : state_->clients) {
        if (client->waiting.size() + bytes.size() > max_backlog) {
            client->close();
            continue;
        }
        client->waiting.append(bytes);
        client->send();
    }
}

std::size_t ConsoleClients::count() const {
    return state_->clients.size();
}

}  // namespace qvm
