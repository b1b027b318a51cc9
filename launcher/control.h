#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <functional>

#include "netns/unique_fd.h"
#include "qmp/server.h"

namespace qvm {

/// What the control socket's clients can have done to a VM.
class Controlled {
  public:
    using Answer = boost::asio::awaitable<boost::json::value>;

    virtual ~Controlled() = default;
    /// Asks the guest to power down, and ends it after `timeout`. Answers when it is over.
    virtual Answer stop(std::chrono::milliseconds timeout) = 0;
    /// Ends it at once. Answers when it is over.
    virtual Answer kill() = 0;
    /// Answers when it is over.
    virtual Answer wait() = 0;
    /// Powers the guest down (after `timeout` without its consent) and boots it again.
    virtual Answer restart(std::chrono::milliseconds timeout) = 0;
    /// Answers when the guest has come so far, or has had time for a boot: with the "problem", or
    /// null.
    virtual Answer wait_for(std::string stage) = 0;
    /// Writes memory, devices and disk into a directory of ours, with the CPUs stopped meanwhile.
    /// Answers with the {"manifest": ..., "pause-ms": N}; its files are not in it.
    virtual Answer save(std::string directory) = 0;
    /// All that `qvm inspect` shows.
    virtual boost::json::value inspect() = 0;
    /// How many are attached to the console.
    virtual std::size_t console_clients() = 0;
    /// Tells the guest the size of its terminal.
    virtual Answer resize_console(unsigned rows, unsigned columns) = 0;
    /// QEMU's own commands.
    virtual Answer pass_through(std::string command, boost::json::object arguments) = 0;
};

/// Carries out a request: commands named qvm-* are ours, all others are QEMU's. Throws
/// qmp::CommandError for what is not a command, or has arguments that are wrong.
Controlled::Answer carry_out(Controlled& vm, qmp::Request request);

}  // namespace qvm
