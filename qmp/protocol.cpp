#include "qmp/protocol.h"

#include <utility>

#include "qmp/error.h"

namespace qvm::qmp {
namespace {

// Calls are numbered from 1.
constexpr std::uint64_t capabilities_id = 0;

// Never part of UTF-8, so it cannot be inside a JSON text.
constexpr char delimiter = '\xff';

bool is_number(const boost::json::value& value, std::uint64_t number) {
    boost::system::error_code ec;
    return value.to_number<std::uint64_t>(ec) == number && !ec;
}

}  // namespace

std::uint64_t Protocol::start(std::uint64_t sync_id) {
    complete(handshake_, make_error_code(Errc::not_ready));
    const auto id = ++last_id_;
    pending_.insert(id);
    handshake_ = id;
    sync_id_ = sync_id;
    if (state_ == State::closed)
        complete(id, error_);
    else
        negotiate();
    return id;
}

// Says what is to be said next, once both a caller wants it and the peer is there to hear it.
void Protocol::negotiate() {
    if (dialect_ == Dialect::guest_agent) {
        output_ += delimiter;  // ends a command that an earlier client left unfinished
        output_ += encode_command(sync_id_, "guest-sync-delimited", {{"id", sync_id_}});
        state_ = State::negotiating;
    } else if (state_ == State::ready) {
        become_ready();
    } else if (state_ == State::awaiting_greeting && greeting_ && handshake_) {
        output_ += encode_command(capabilities_id, "qmp_capabilities", {});
        state_ = State::negotiating;
    }
}

void Protocol::become_ready() {
    state_ = State::ready;
    complete(handshake_, boost::json::value());
}

std::uint64_t Protocol::submit(std::string_view command, const boost::json::object& arguments) {
    if (state_ == State::closed) throw std::system_error(error_, std::string(command));
    if (state_ != State::ready) throw std::system_error(Errc::not_ready, std::string(command));
    output_ += encode_command(last_id_ + 1, command, arguments);
    pending_.insert(++last_id_);
    return last_id_;
}

void Protocol::feed(std::string_view bytes) {
    if (state_ == State::closed) return;
    lines_.append(bytes);
    while (const auto line = lines_.next()) {
        dialect_ == Dialect::qmp ? on_line(*line) : on_agent_line(*line);
        if (state_ == State::closed) return;
    }
    if (lines_.too_long()) close(Errc::line_too_long);
}

void Protocol::on_line(std::string_view line) {
    std::error_code error;
    auto message = parse_message(line, error);
    if (error) return close(error);
    if (!greeting_ && !std::holds_alternative<Greeting>(message))
        return close(Errc::unexpected_message);
    std::visit([this](auto& m) { on(std::move(m)); }, message);
}

// What precedes a delimiter is the remains of something older.
void Protocol::on_agent_line(std::string_view line) {
    const auto mark = line.rfind(delimiter);
    const bool delimited = mark != std::string_view::npos;
    if (delimited) line.remove_prefix(mark + 1);

    std::error_code error;
    auto message = parse_message(line, error);
    if (error) return;
    if (auto* reply = std::get_if<Return>(&message)) {
        if (state_ == State::negotiating && delimited && is_number(reply->value, sync_id_))
            return become_ready();
        complete(reply->id, std::move(reply->value));
    } else if (auto* refusal = std::get_if<ErrorReply>(&message)) {
        refuse(std::move(*refusal));
    }
}

void Protocol::on(Greeting greeting) {
    if (greeting_) return close(Errc::unexpected_message);
    greeting_ = std::move(greeting);
    negotiate();
}

void Protocol::on(Return reply) {
    if (state_ == State::negotiating && reply.id == capabilities_id) return become_ready();
    complete(reply.id, std::move(reply.value));
}

void Protocol::on(ErrorReply reply) {
    if (state_ == State::negotiating && reply.id == capabilities_id) {
        complete(handshake_, std::move(reply));
        return close(Errc::handshake_refused);
    }
    refuse(std::move(reply));
}

void Protocol::on(Event event) {
    if (events_.size() == max_events) {
        events_.pop_front();
        ++dropped_events_;
    }
    events_.push_back(std::move(event));
}

void Protocol::complete(std::optional<std::uint64_t> id, Outcome outcome) {
    if (id && pending_.erase(*id)) completions_.push_back({*id, std::move(outcome)});
}

void Protocol::refuse(ErrorReply reply) {
    const auto id = reply.id;
    complete(id, std::move(reply));
}

void Protocol::close(std::error_code why) {
    if (state_ == State::closed) return;
    state_ = State::closed;
    error_ = why;
    for (const auto id : std::exchange(pending_, {})) completions_.push_back({id, why});
}

std::string Protocol::take_output() {
    return std::exchange(output_, {});
}

std::vector<Completion> Protocol::take_completions() {
    return std::exchange(completions_, {});
}

std::optional<Event> Protocol::next_event() {
    if (events_.empty()) return std::nullopt;
    std::optional event(std::move(events_.front()));
    events_.pop_front();
    return event;
}

}  // namespace qvm::qmp
