#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <string>

#include "launcher/guest_command.h"
#include "netns/unique_fd.h"

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

/// A shell script as a command, with its parameters.
template <typename... Words>
GuestCommand guest_script(const char* text, const Words&... words) {
    GuestCommand command;
    command.argv = {"sh", "-c", text, "sh", words...};
    return command;
}

}  // namespace qvm
