#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "launcher/guest_command.h"
#include "netns/unique_fd.h"

namespace qvm {

/// What a user should know meanwhile.
struct GuestNotes {
    std::function<void(const std::string&)> waiting;  ///< "for the guest agent", which takes long
    std::function<void(const std::string&)> note;
};

/// Descriptors of ours, which are borrowed.
struct GuestStreams {
    int in = 0;
    int out = 1;
    int err = 2;
};

/// A command in the guest as if it ran here: with this process's stdin, stdout and stderr, or
/// others; with a terminal, stdin is raw while it runs. The client of an ExecService.
class GuestProcess {
  public:
    /// `service` is a connection to it. Without `with_stdin` the command's stdin is empty. Throws
    /// Failure where it cannot be asked for.
    GuestProcess(const boost::asio::any_io_executor& executor, UniqueFd service,
                 const GuestCommand& command, bool with_stdin, GuestNotes notes,
                 GuestStreams streams = {});
    ~GuestProcess();
    GuestProcess(const GuestProcess&) = delete;
    GuestProcess& operator=(const GuestProcess&) = delete;

    /// Until the command has ended and all that it wrote is written here; its exit status, as a
    /// shell has it. 128 + SIGPIPE where nobody reads our stdout. Throws Failure for what is no end
    /// of the command. To be awaited once.
    boost::asio::awaitable<int> end();

    /// Bytes of its stdin and stdout by now.
    [[nodiscard]] std::uint64_t transferred() const noexcept;

    /// Our terminal has another size: so has the command's, if it has one.
    void resize();

    /// Sends the command a signal; false where it is not started yet.
    bool signal(int number);

  private:
    struct Core;
    std::shared_ptr<Core> core_;
};

}  // namespace qvm
