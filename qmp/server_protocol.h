#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "qmp/line_buffer.h"
#include "qmp/message.h"

namespace qvm::qmp {

/// The default cap on a line from a client, in bytes.
inline constexpr std::size_t default_max_request = std::size_t{1} << 20;

/// negotiating -> ready, and from both to one of the ends.
enum class ServerState {
    negotiating,
    ready,
    /// The client sent a line above the cap: to be closed once the output is sent.
    closing,
    /// The client does not read its events: to be closed at once.
    overrun,
};

/// The server's side of one client's connection without the connection: bytes in by feed(), bytes
/// out by take_output(), and in between the commands that are to be carried out. It greets, and
/// negotiates and refuses as QEMU 7.2's monitor does, but one request is one line here. No
/// capability is offered. Source: QEMU's docs/interop/qmp-spec.txt, monitor/qmp.c and
/// qapi/qmp-dispatch.c.
class ServerProtocol {
  public:
    /// No further request is looked at while more output than this waits to be taken, in bytes.
    static constexpr std::size_t max_output = std::size_t{64} << 10;

    /// A connection with more events than this waiting to be taken, in bytes, is overrun.
    static constexpr std::size_t max_events = std::size_t{1} << 20;

    /// `greeting`: what is said first, without its capabilities. `max_line`: the cap on a line from
    /// the client, in bytes.
    explicit ServerProtocol(Greeting greeting, std::size_t max_line = default_max_request);

    /// Takes in what was read from the client, cut anywhere.
    void feed(std::string_view bytes);

    /// Whether there is any use in reading on: nobody will look at what comes after an end, and
    /// whoever leaves requests waiting is not to hold more than about the cap.
    bool wants_input() const;

    /// The next command to be carried out, one at a time and in order, to be answered by reply() or
    /// refuse(). What is not a request, and what the negotiation is about, is answered in here.
    /// Nothing when there is no whole line yet, while more than max_output waits (call again after
    /// take_output()), and after an end.
    std::optional<Request> next_request();

    /// Answers a request. A value that cannot be written as JSON becomes a refusal.
    void reply(const std::optional<boost::json::value>& id, const boost::json::value& value);

    /// Answers a request with an error. `error_class`: QAPI's QapiErrorClass, "GenericError" say.
    void refuse(const std::optional<boost::json::value>& id, std::string_view error_class,
                std::string_view desc);

    /// Tells the client of an event; nothing happens unless the connection is ready. Throws
    /// std::system_error with Errc::not_encodable.
    void event(const Event& event);

    /// What is to be sent to the client; it is handed out once.
    std::string take_output();

    ServerState state() const { return state_; }

  private:
    bool ended() const;
    std::optional<Request> on_line(std::string_view line);
    void negotiate(const Request& request);

    ServerState state_ = ServerState::negotiating;
    LineBuffer lines_;
    std::string output_;
    std::size_t event_bytes_ = 0;  // of output_
};

}  // namespace qvm::qmp
