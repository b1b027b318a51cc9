#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <variant>
#include <vector>

/// The messages of QMP as values. Source: QEMU's docs/interop/qmp-spec.txt, section 2.
namespace qvm::qmp {

/// What the server says first: its version (QAPI's VersionInfo) and what it can negotiate.
struct Greeting {
    int major = 0;
    int minor = 0;
    int micro = 0;
    /// The distributor's version text; may be empty.
    std::string package;
    /// Such as "oob". None is asked for by this library.
    std::vector<std::string> capabilities;
};

/// A command succeeded.
struct Return {
    /// Missing when the peer gave none, or none that this library can have sent.
    std::optional<std::uint64_t> id;
    boost::json::value value;
};

/// A command failed.
struct ErrorReply {
    /// Missing, above all, in the answer to input that the peer could not parse.
    std::optional<std::uint64_t> id;
    /// QAPI's QapiErrorClass, such as "GenericError".
    std::string error_class;
    std::string desc;
};

/// Something happened that nobody asked for at that moment.
struct Event {
    std::string name;
    /// Empty when the event has no data.
    boost::json::object data;
    /// Seconds and microseconds since the Epoch by the peer's clock; -1 when it has none.
    std::int64_t seconds = -1;
    std::int64_t microseconds = -1;
};

using Message = std::variant<Greeting, Return, ErrorReply, Event>;

/// A client wants a command executed.
struct Request {
    /// Whatever the client chose, null included; it belongs into the answer. Missing when the
    /// client gave none.
    std::optional<boost::json::value> id;
    std::string command;
    boost::json::object arguments;
};

/// How deeply a message may be nested. QEMU's image information nests once per backing file.
inline constexpr std::size_t max_depth = 256;

/// Reads one line from a server. On failure sets `error` to Errc::bad_json or Errc::bad_message,
/// and what it returns means nothing. Members that it does not know are ignored, as the
/// specification asks.
Message parse_message(std::string_view line, std::error_code& error);

/// The line, with its newline, that executes a command. Throws std::system_error with
/// Errc::not_encodable when the peer could not parse it: QEMU would answer such a line without
/// its id, and the call would only time out.
std::string encode_command(std::uint64_t id, std::string_view command,
                           const boost::json::object& arguments);

/// Reads one line from a client, as strictly as QEMU does: members that it does not know are
/// refused. On failure sets `problem`, empty otherwise, to words for the client; of what it returns
/// only the id, where it could be read, means anything then.
Request parse_request(std::string_view line, std::string& problem);

// The lines, with their newline, that a server sends. `id` is the request's.

/// Cannot fail; see encode_error() for text that is not UTF-8.
std::string encode_greeting(const Greeting& greeting);

/// Throws std::system_error with Errc::not_encodable when the client could not parse the line: the
/// value has text that is not UTF-8, or is nested too deeply.
std::string encode_return(const std::optional<boost::json::value>& id,
                          const boost::json::value& value);

/// Cannot fail: in text that is not UTF-8, '?' takes the place of each byte that is not ASCII.
std::string encode_error(const std::optional<boost::json::value>& id, std::string_view error_class,
                         std::string_view desc);

/// Throws as encode_return() does.
std::string encode_event(const Event& event);

}  // namespace qvm::qmp
