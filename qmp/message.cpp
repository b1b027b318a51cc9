#include "qmp/message.h"

#include <algorithm>
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

// The words for what is wrong are those of QEMU's qapi/qmp-dispatch.c. Gives no words when all is
// well.
std::string read_request(json::object& message, Request& request) {
    if (auto* id = message.if_contains("id")) request.id = std::move(*id);
    for (auto& [name, value] : message) {
        if (name == "execute") {
            if (!value.is_string()) return "QMP input member 'execute' must be a string";
            read(message, "execute", request.command);
        } else if (name == "arguments") {
            if (!value.is_object()) return "QMP input member 'arguments' must be an object";
            request.arguments = std::move(value.get_object());
        } else if (name != "id") {
            return "QMP input member '" + std::string(name) + "' is unexpected";
        }
    }
    return message.contains("execute") ? "" : "QMP input lacks member 'execute'";
}

// `what`: for the error's text.
std::string encode(const json::object& message, std::string_view what) {
    auto line = json::serialize(message);
    boost::system::error_code ec;
    parse_json(line, ec);
    if (ec) throw std::system_error(Errc::not_encodable, std::string(what));
    return line + '\n';
}

json::string as_utf8(std::string_view text) {
    json::string result(text);
    boost::system::error_code ec;
    parse_json(json::serialize(result), ec);
    if (ec)
        std::replace_if(
            result.begin(), result.end(), [](char c) { return (c & 0x80) != 0; }, '?');
    return result;
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
    return encode(message, command);
}

Request parse_request(std::string_view line, std::string& problem) {
    Request request;
    boost::system::error_code ec;
    auto document = parse_json(line, ec);
    auto* message = document.if_object();
    if (ec)
        problem = "JSON parse error, " + ec.message();
    else if (!message)
        problem = "QMP input must be a JSON object";
    else
        problem = read_request(*message, request);
    return request;
}

std::string encode_greeting(const Greeting& greeting) {
    const json::object qemu(
        {{"micro", greeting.micro}, {"minor", greeting.minor}, {"major", greeting.major}});
    json::array capabilities;
    for (const auto& name : greeting.capabilities) capabilities.push_back(as_utf8(name));
    json::object qmp;
    qmp["version"] = json::object({{"qemu", qemu}, {"package", as_utf8(greeting.package)}});
    qmp["capabilities"] = std::move(capabilities);
    json::object message;
    message["QMP"] = std::move(qmp);
    return encode(message, "greeting");
}

std::string encode_return(const std::optional<json::value>& id, const json::value& value) {
    json::object message;
    message["return"] = value;
    if (id) message["id"] = *id;
    return encode(message, "return");
}

std::string encode_error(const std::optional<json::value>& id, std::string_view error_class,
                         std::string_view desc) {
    json::object error;
    error["class"] = as_utf8(error_class);
    error["desc"] = as_utf8(desc);
    json::object message;
    message["error"] = std::move(error);
    if (id) message["id"] = *id;
    return encode(message, "error");
}

std::string encode_event(const Event& event) {
    json::object message;
    message["timestamp"] =
        json::object({{"seconds", event.seconds}, {"microseconds", event.microseconds}});
    message["event"] = event.name;
    if (!event.data.empty()) message["data"] = event.data;
    return encode(message, event.name);
}

}  // namespace qvm::qmp
