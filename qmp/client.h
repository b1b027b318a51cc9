#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>

#include "qmp/error.h"
#include "qmp/protocol.h"

namespace qvm::qmp {

/// A connection to QEMU's monitor or to a guest agent: Protocol on a socket.
///
/// All of it belongs to one thread: the members are called, and the coroutines awaited, on
/// `executor`. Nothing happens while nothing is to be done; a timer runs only while a call waits.
/// The client may be destroyed at any moment: what waits then ends as after close().
///
/// Calls fail with std::system_error of an Errc, or of the kernel's error for the socket. A
/// cancelled coroutine, by contrast, ends as any of Asio's does: with boost::system::system_error
/// of boost::asio::error::operation_aborted.
class Client {
  public:
    /// Takes over `descriptor`, a connected stream socket (one end of a socketpair, say), and
    /// begins to read from it when `executor` next runs. The descriptor is closed by this object,
    /// and also when the constructor throws std::system_error: it cannot be waited on.
    /// `max_line`: the cap on a line from the peer, in bytes; a guest can make us hold that much.
    Client(boost::asio::any_io_executor executor, int descriptor, Dialect dialect = Dialect::qmp,
           std::size_t max_line = default_max_line);
    ~Client();
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    /// Brings the connection to where commands can be executed: the greeting and qmp_capabilities,
    /// or guest-sync-delimited. May be repeated after a timeout (the guest agent is not up yet),
    /// and on a guest agent at any time, to get in step with it again; one at a time. Throws
    /// CommandError when qmp_capabilities is refused, and as execute() does.
    boost::asio::awaitable<void> handshake(std::chrono::milliseconds timeout);

    /// Executes a command and returns its "return" member. Any number may be under way at once;
    /// QEMU and the agent take them in order. Throws CommandError when the peer refuses, and
    /// std::system_error: Errc::timed_out after `timeout` (the command may yet be carried out; its
    /// answer is dropped), Errc::not_ready before the handshake, Errc::not_encodable,
    /// Errc::disconnected, Errc::closed, or what was wrong with the peer's input.
    /// The agent's guest-shutdown and guest-suspend-* do not answer when they succeed.
    boost::asio::awaitable<boost::json::value> execute(std::string_view command,
                                                       boost::json::object arguments,
                                                       std::chrono::milliseconds timeout);
    /// The same with a descriptor for QEMU (SCM_RIGHTS), as getfd takes one. `descriptor` stays the
    /// caller's; QEMU gets a duplicate. Throws std::system_error also where there can be none.
    boost::asio::awaitable<boost::json::value> execute(std::string_view command,
                                                       boost::json::object arguments,
                                                       int descriptor,
                                                       std::chrono::milliseconds timeout);

    /// Calls that wait end as after their timeouts: nobody will answer them (the guest was reset).
    void give_up();

    /// The next event, in the order of arrival; nothing once the connection is over and all that
    /// came before its end have been taken. Without limit in time. For one consumer.
    boost::asio::awaitable<std::optional<Event>> next_event();

    /// Closes the socket at once, sent or not. What waits ends: calls with Errc::closed.
    void close();

    /// Whether the connection is over, from whichever side.
    bool closed() const;

    /// Why the connection is over: an Errc, or the kernel's error; no error while it is not.
    std::error_code error() const;

    /// What QEMU said first; there after a handshake(), and never from a guest agent.
    const std::optional<Greeting>& greeting() const;

    /// How many events were lost because nobody took them in time; see Protocol::max_events.
    std::size_t dropped_events() const;

  private:
    struct Connection;
    std::shared_ptr<Connection> connection_;  // shared with the coroutines under way
};

}  // namespace qvm::qmp
