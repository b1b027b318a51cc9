#include "qmp/server_protocol.h"

#include <boost/json/serialize.hpp>
#include <system_error>
#include <utility>

#include "qmp/error.h"

namespace qvm::qmp {
namespace {

namespace json = boost::json;

constexpr std::string_view generic_error = "GenericError";
constexpr std::string_view command_not_found = "CommandNotFound";

// What is wrong with qmp_capabilities' arguments; empty when nothing is.
std::string objection_to(const json::object& arguments) {
    for (const auto& [name, value] : arguments) {
        if (name != "enable") return "Parameter '" + std::string(name) + "' is unexpected";
        const auto* enable = value.if_array();
        if (!enable) return "Invalid parameter type for 'enable', expected: array";
        if (!enable->empty())
            return "Capability " + json::serialize(enable->front()) + " not available";
    }
    return {};
}

}  // namespace

ServerProtocol::ServerProtocol(Greeting greeting, std::size_t max_line) : lines_(max_line) {
    greeting.capabilities.clear();
    output_ = encode_greeting(greeting);
}

bool ServerProtocol::ended() const {
    return state_ == ServerState::closing || state_ == ServerState::overrun;
}

void ServerProtocol::feed(std::string_view bytes) {
    if (!ended()) lines_.append(bytes);
}

bool ServerProtocol::wants_input() const {
    return !ended() && !lines_.full();
}

std::optional<Request> ServerProtocol::next_request() {
    while (!ended() && output_.size() <= max_output) {
        const auto line = lines_.next();
        if (line) {
            if (auto request = on_line(*line)) return request;
        } else if (lines_.too_long()) {
            refuse({}, generic_error, "QMP input line is too long");
            state_ = ServerState::closing;
        } else {
            break;
        }
    }
    return std::nullopt;
}

std::optional<Request> ServerProtocol::on_line(std::string_view line) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return std::nullopt;
    std::string problem;
    auto request = parse_request(line, problem);
    if (!problem.empty())
        refuse(request.id, generic_error, problem);
    else if (state_ == ServerState::negotiating)
        negotiate(request);
    else if (request.command == "qmp_capabilities")
        refuse(request.id, command_not_found,
               "Capabilities negotiation is already complete, command ignored");
    else
        return request;
    return std::nullopt;
}

void ServerProtocol::negotiate(const Request& request) {
    if (request.command != "qmp_capabilities")
        return refuse(request.id, command_not_found,
                      "Expecting capabilities negotiation with 'qmp_capabilities'");
    const auto objection = objection_to(request.arguments);
    if (!objection.empty()) return refuse(request.id, generic_error, objection);
    state_ = ServerState::ready;
    reply(request.id, json::object());
}

void ServerProtocol::reply(const std::optional<json::value>& id, const json::value& value) {
    try {
        output_ += encode_return(id, value);
    } catch (const std::system_error&) {
        refuse(id, generic_error, "The answer cannot be written as JSON");
    }
}

void ServerProtocol::refuse(const std::optional<json::value>& id, std::string_view error_class,
                            std::string_view desc) {
    output_ += encode_error(id, error_class, desc);
}

void ServerProtocol::event(const Event& event) {
    if (state_ != ServerState::ready) return;
    const auto line = encode_event(event);
    event_bytes_ += line.size();
    if (event_bytes_ > max_events)
        state_ = ServerState::overrun;
    else
        output_ += line;
}

std::string ServerProtocol::take_output() {
    event_bytes_ = 0;
    return std::exchange(output_, {});
}

}  // namespace qvm::qmp
