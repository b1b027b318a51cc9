#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>

#include "qmp/message.h"

namespace qvm::qmp {

/// A monitor for any number of clients: ServerProtocol on each connection to a socket.
///
/// All of it belongs to one thread: the members are called, and the handlers run, on `executor`.
/// Clients do not wait for each other. One client's requests are handled one after another; one
/// that does not read its answers finds that its requests are no longer read, and one that does not
/// read its events is disconnected (see ServerProtocol's limits).
///
/// A client that shuts down its writing side only is served to the end of what it has asked, and
/// then disconnected. One that closes its socket is gone: its command under way is cancelled, and
/// what it asked for after that is not carried out.
///
/// The server may be destroyed at any moment; that disconnects every client.
class Server {
  public:
    /// Carries out a command. To refuse it throws CommandError, of which the class and desc are
    /// sent; of any other std::exception what() is, as a GenericError. What is no std::exception
    /// comes out of the executor. When the client goes, or the server does, the coroutine is
    /// cancelled (terminally: as Asio has it, its present or next co_await throws), and what it
    /// comes to is dropped. Requests are never handled after the server's destructor, but a handler
    /// that is under way then ends only when the executor next runs.
    using Handler = std::function<boost::asio::awaitable<boost::json::value>(Request)>;

    /// How many clients are served at once. One more takes the place of the one that has been there
    /// longest of those that wait for no answer; where all do, it waits in the socket's backlog.
    static constexpr std::size_t max_clients = 128;

    /// Takes over `listening_descriptor`, a listening AF_UNIX stream socket, and accepts clients
    /// when `executor` next runs. The descriptor is closed by this object (a path that it is bound
    /// to remains), and also when the constructor throws std::system_error: it cannot be waited on.
    /// `greeting`: what each client is told first, without its capabilities. While accepting fails,
    /// for want of descriptors say, it is tried again every 100 ms.
    Server(boost::asio::any_io_executor executor, int listening_descriptor, Greeting greeting,
           Handler handler);
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    /// Tells every client that has negotiated of an event. Throws std::system_error with
    /// Errc::not_encodable; then it was told to nobody.
    void broadcast(const Event& event);

    /// Comes to an end in good order: from now on nobody is accepted and no further request is
    /// begun. Each client is disconnected as soon as its command under way is answered and all is
    /// sent that was queued for it; those that are left after `grace` are disconnected as they are.
    /// To be called once. Other than by cancellation it does not fail.
    boost::asio::awaitable<void> finish(std::chrono::milliseconds grace);

  private:
    struct Connection;
    struct Core;
    std::shared_ptr<Core> core_;  // shared with whatever is under way
};

}  // namespace qvm::qmp
