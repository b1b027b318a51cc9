#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <variant>
#include <vector>

#include "qmp/line_buffer.h"
#include "qmp/message.h"

namespace qvm::qmp {

/// Who is at the other end.
enum class Dialect {
    /// QEMU's monitor: it greets, qmp_capabilities follows, events come. Anything malformed is a
    /// failure of the connection.
    qmp,
    /// The guest agent (QEMU's qga/qapi-schema.json), that is to say the guest, which may send
    /// anything: no greeting; guest-sync-delimited finds the beginning of what is meant for us;
    /// lines that make no sense, and events, are dropped. The agent must echo ids (QEMU >= 4.0).
    guest_agent,
};

/// awaiting_greeting -> negotiating -> ready, and closed from anywhere. The guest agent's side
/// begins with awaiting_greeting as well, and goes back from ready to negotiating to sync again.
enum class State { awaiting_greeting, negotiating, ready, closed };

/// How a call ended: the returned value, the peer's refusal, or why there will be no answer.
using Outcome = std::variant<boost::json::value, ErrorReply, std::error_code>;

/// A call that has ended.
struct Completion {
    std::uint64_t id;
    Outcome outcome;
};

/// The client's side of a connection without the connection: bytes in by feed(), bytes out by
/// take_output(), and in between what became of calls and which events came. It does no input or
/// output, knows no time, and never waits. Source: QEMU's docs/interop/qmp-spec.txt.
class Protocol {
  public:
    /// Events that wait for next_event() beyond this number push out the oldest ones.
    static constexpr std::size_t max_events = 4096;

    /// `max_line`: the cap on a line from the peer, in bytes.
    explicit Protocol(Dialect dialect, std::size_t max_line = default_max_line)
        : dialect_(dialect), lines_(max_line) {}

    /// Begins the handshake, and returns the call whose completion says how it went: a value, the
    /// ErrorReply to qmp_capabilities, or an error. May be repeated: after a handshake that was
    /// abandoned, on a ready connection, and to bring a guest agent back in step after the guest
    /// has rebooted. An earlier one that still waits fails with Errc::not_ready.
    /// `sync_id`: for the guest agent, a number that no earlier client of this agent has used.
    std::uint64_t start(std::uint64_t sync_id);

    /// Queues a command and returns its call. Throws std::system_error: Errc::not_ready before the
    /// handshake is done, Errc::not_encodable, or error() when closed.
    std::uint64_t submit(std::string_view command, const boost::json::object& arguments);

    /// Forgets a call: its answer, should it still come, is dropped.
    void abandon(std::uint64_t id) { pending_.erase(id); }

    /// Queues what says nothing, for a peer that may not have looked at all that it was sent.
    void nudge() { output_ += '\n'; }

    /// Takes in what was read from the peer, cut anywhere. Malformed input closes; see error().
    void feed(std::string_view bytes);

    /// The connection is over: Errc::disconnected at the end of input, Errc::closed when it is us.
    /// Every pending call fails with `why`. Only the first reason counts.
    void close(std::error_code why);

    /// What is to be sent to the peer; it is handed out once.
    std::string take_output();

    /// The calls that have ended since the last time, in the order in which they did.
    std::vector<Completion> take_completions();

    /// The oldest event that nobody took. Those that came before the end remain after it.
    std::optional<Event> next_event();

    State state() const { return state_; }

    /// Why the connection is closed; no error while it is not.
    std::error_code error() const { return error_; }

    /// What the server said first; nothing before that, and nothing from a guest agent.
    const std::optional<Greeting>& greeting() const { return greeting_; }

    /// How many events were pushed out because nobody took them.
    std::size_t dropped_events() const { return dropped_events_; }

  private:
    void negotiate();
    void become_ready();
    void on_line(std::string_view line);
    void on_agent_line(std::string_view line);
    void on(Greeting greeting);
    void on(Return reply);
    void on(ErrorReply reply);
    void on(Event event);
    void refuse(ErrorReply reply);
    void complete(std::optional<std::uint64_t> id, Outcome outcome);

    Dialect dialect_;
    State state_ = State::awaiting_greeting;
    std::error_code error_;
    LineBuffer lines_;
    std::string output_;
    std::optional<Greeting> greeting_;
    std::optional<std::uint64_t> handshake_;  // the call that start() returned
    std::uint64_t sync_id_ = 0;
    std::uint64_t last_id_ = 0;
    std::set<std::uint64_t> pending_;
    std::vector<Completion> completions_;
    std::deque<Event> events_;
    std::size_t dropped_events_ = 0;
};

}  // namespace qvm::qmp
