#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "launcher/guest_command.h"
#include "netns/unique_fd.h"
#include "qmp/client.h"

namespace qvm {

/// What a command in the guest printed (64 KiB of it), and its exit status, as a shell has it.
struct GuestAnswer {
    int exit_status = 0;
    std::string out;
    std::string err;
};

/// Runs a command of ours in the guest, without stdin, to its end. `service` is a connection to the
/// ExecService. Throws Failure for what is no end of the command.
boost::asio::awaitable<GuestAnswer> run_in_guest(boost::asio::any_io_executor executor,
                                                 UniqueFd service, GuestCommand command);

/// How a command that the agent itself runs (guest_capture_arguments()) has ended, which is asked
/// of it again and again: it has no word for an end. Nothing where `wanted` is not true any more.
/// Throws what qmp::Client does.
boost::asio::awaitable<std::optional<GuestCapture>> capture_end(qmp::Client& agent,
                                                                std::int64_t pid,
                                                                std::function<bool()> wanted);

/// A shell script as a command, with its parameters.
template <typename... Words>
GuestCommand guest_script(const char* text, const Words&... words) {
    GuestCommand command;
    command.argv = {"sh", "-c", text, "sh", words...};
    return command;
}

}  // namespace qvm
