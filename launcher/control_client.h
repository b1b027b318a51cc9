#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "qmp/client.h"

namespace qvm {

/// What to say of a VM that does not live.
Failure not_running(const Directories& directories, const std::string& name);

/// Throws `failure` again as one of `step` ("exec in 'web'"); but where the VM has ended, that is
/// said as it is.
[[noreturn]] void rethrow(const std::exception_ptr& failure, const std::string& step);

/// A client of one living VM's control socket. What fails is said with the VM's name.
class ControlClient {
  public:
    /// Takes hold of the VM's supervisor. Throws Failure where no VM of that name lives.
    ControlClient(const boost::asio::any_io_executor& executor, const Directories& directories,
                  const std::string& name);

    /// Connects, and waits until the VM's CPUs run: 10 s at most, and 150 s for a VM that starts,
    /// which is longer than its supervisor takes for that. Throws Failure; Gone when the VM ended
    /// or is about to, Silent when the time is over.
    boost::asio::awaitable<void> ready();
    /// SIGKILL to the supervisor, which takes all that is its with it.
    void kill_supervisor() noexcept;
    /// Throws Failure for what is refused or not answered in time, and Gone when the VM ended
    /// before it answered. `step` is what the user calls it, where that is another word.
    boost::asio::awaitable<boost::json::value> execute(std::string command,
                                                       boost::json::object arguments,
                                                       std::chrono::milliseconds timeout,
                                                       const char* step = nullptr);
    /// Until the supervisor has ended, and all that was its with it.
    boost::asio::awaitable<void> until_gone();
    /// The same, for `timeout` at most; whether it has ended.
    boost::asio::awaitable<bool> is_gone(std::chrono::milliseconds timeout);

    struct Gone : Failure {
        using Failure::Failure;
    };
    struct Silent : Failure {  ///< a supervisor that does not answer
        using Failure::Failure;
    };

  private:
    std::string name_;
    std::filesystem::path directory_;                   ///< the VM's, below the run directory
    std::chrono::milliseconds patience_;                ///< of ready()
    boost::asio::posix::stream_descriptor supervisor_;  ///< a pidfd
    std::unique_ptr<qmp::Client> client_;
};

}  // namespace qvm
