#pragma once

#include <stdexcept>
#include <string>
#include <system_error>

namespace qvm::qmp {

/// Why a connection or a call failed, other than by the peer's refusal (CommandError).
enum class Errc {
    /// A line from the peer is not JSON, or is nested too deeply.
    bad_json = 1,
    /// A line from the peer is JSON, but no greeting, reply or event.
    bad_message,
    /// A line from the peer is longer than the cap.
    line_too_long,
    /// The peer sent something before its greeting, or greeted twice.
    unexpected_message,
    /// The peer refused qmp_capabilities.
    handshake_refused,
    /// A command was given before the handshake was done.
    not_ready,
    /// A command's name or arguments cannot be written as JSON (text that is not UTF-8, say).
    not_encodable,
    /// No answer within the call's time.
    timed_out,
    /// The peer closed the connection, or the connection broke.
    disconnected,
    /// This side closed the connection.
    closed,
};

/// The category of Errc; its name is "qmp".
const std::error_category& error_category() noexcept;

/// Found by std::error_code's constructor, so that an Errc converts to a std::error_code.
std::error_code make_error_code(Errc code) noexcept;

/// The peer understood a command and refused it. what() is "COMMAND: DESC".
struct CommandError : std::runtime_error {
    CommandError(std::string command, std::string error_class, std::string desc);

    /// The command that was refused.
    std::string command;
    /// QAPI's QapiErrorClass ("CommandNotFound"); "GenericError" for nearly every failure.
    std::string error_class;
    /// The peer's own words, for people.
    std::string desc;
};

}  // namespace qvm::qmp

template <>
struct std::is_error_code_enum<qvm::qmp::Errc> : std::true_type {};
