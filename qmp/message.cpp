#include "qmp/message.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <utility>

#include "qmp/error.h"

namespace qvm::qmp {
namespace {

namespace json = boost::json;

// Depth is bounded because parser and destructor recurse.
json::value parse_json(std::string_view text, boost::system::error_code& ec) {
    json::parse_options options;
    options.max_depth = max_depth;
    return json::parse(text, ec, {}, options);
}

const json::object* object_at(const json::object& object, std::string_view key) {
    const auto* value = object.if_contains(key);
    return value ? value->if_object() : nullptr;
}

// Gives false, and leaves `out` alone, when the member is missing or is something else.
bool read(const json::object& object, std::string_view key, std::string& out) {
    const auto* value = object.if_contains(key);
    const auto* text = value ? value->if_string() : nullptr;
    if (text) out.assign(text->data(), text->size());
    return text != nullptr;
}

template <typename Integer>
bool read(const json::object& object, std::string_view key, Integer& out) {
    const auto* value = object.if_contains(key);
    if (!value || value->is_double()) return false;
    boost::system::error_code ec;
    const auto number = value->to_number<Integer>(ec);
    if (!ec) out = number;
    return !ec;
}

std::optional<std::uint64_t> read_id(const json::object& message) {
    std::uint64_t id = 0;
    return read(message, "id", id) ? std::optional(id) : std::nullopt;
}

void read_capabilities(const json::object& qmp, Greeting& greeting) {
    const auto* list = qmp.if_contains("capabilities");
    if (!list || !list->is_array()) return;
    for (const auto& item : list->get_array())
        if (const auto* name = item.if_string())
            greeting.capabilities.emplace_back(name->data(), name->size());
}

std::optional<Message> to_greeting(const json::object& message) {
    const auto* qmp = object_at(message, "QMP");
    const auto* version = qmp ? object_at(*qmp, "version") : nullptr;
    const auto* qemu = version ? object_at(*version, "qemu") : nullptr;
    Greeting greeting;
    if (!qemu || !read(*qemu, "major", greeting.major) || !read(*qemu, "minor", greeting.minor) ||
        !read(*qemu, "micro", greeting.micro))
        return std::nullopt;
    read(*version, "package", greeting.package);
    read_capabilities(*qmp, greeting);
    return greeting;
}

std::optional<Message> to_error(const json::object& message) {
    const auto* error = object_at(message, "error");
    ErrorReply reply{read_id(message), {}, {}};
    if (!error || !read(*error, "class", reply.error_class) || !read(*error, "desc", reply.desc))
        return std::nullopt;
    return reply;
}

std::optional<Message> to_event(json::object& message) {
    Event event;
    if (!read(message, "event", event.name)) return std::nullopt;
    if (auto* data = message.if_contains("data")) {
        if (!data->is_object()) return std::nullopt;
        event.data = std::move(data->get_object());
    }
    if (const auto* timestamp = object_at(message, "timestamp")) {
        read(*timestamp, "seconds", event.seconds);
        read(*timestamp, "microseconds", event.microseconds);
    }
    return event;
}

std::optional<Message> to_message(json::object& message) {
    if (auto* value = message.if_contains("return"))
        return Return{read_id(message), std::move(*value)};
    if (message.contains("error")) return to_error(message);
    if (message.contains("event")) return to_event(message);
    return to_greeting(message);
}

}  // namespace

Message parse_message(std::string_view line, std::error_code& error) {
    boost::system::error_code ec;
    auto document = parse_json(line, ec);
    error = ec ? make_error_code(Errc::bad_json) : std::error_code();
    if (ec) return {};

    std::optional<Message> message;
    if (auto* object = document.if_object()) message = to_message(*object);
    if (!message) error = Errc::bad_message;
    return message ? std::move(*message) : Message();
}

std::string encode_command(std::uint64_t id, std::string_view command,
                           const json::object& arguments) {
    json::object message;
    message["execute"] = command;
    if (!arguments.empty()) message["arguments"] = arguments;
    message["id"] = id;
    auto line = json::serialize(message);
    boost::system::error_code ec;
    parse_json(line, ec);
    if (ec) throw std::system_error(Errc::not_encodable, std::string(command));
    return line + '\n';
}

}  // namespace qvm::qmp
