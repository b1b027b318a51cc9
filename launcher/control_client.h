#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/json/object.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "netns/unique_fd.h"
#include "qmp/client.h"

namespace qvm {

/// What to say of a VM that does not live.
Failure not_running(const Directories& directories, const std::string& name);

/// A client of one living VM's control socket. What fails is said with the VM's name.
class ControlClient {
  public:
    /// Connects. Throws Failure where no VM of that name lives.
    ControlClient(const boost::asio::any_io_executor& executor, const Directories& directories,
                  const std::string& name);

    /// Waits until the VM's CPUs run, for `timeout` at most: by default longer than a supervisor
    /// gives QEMU to start. Throws Failure.
    boost::asio::awaitable<void> ready(std::chrono::milliseconds timeout = std::chrono::seconds{
                                           90});
    /// SIGKILL to the supervisor, which takes all that is its with it.
    void kill_supervisor() noexcept;
    /// Throws Failure for what is refused or not answered in time, and Gone when the VM ended
    /// before it answered.
    boost::asio::awaitable<boost::json::value> execute(std::string command,
                                                       boost::json::object arguments,
                                                       std::chrono::milliseconds timeout);
    /// Until the supervisor has ended, and all that was its with it.
    boost::asio::awaitable<void> until_gone();

    struct Gone : Failure {
        using Failure::Failure;
    };

  private:
    std::string name_;
    UniqueFd supervisor_;  ///< a pidfd
    std::unique_ptr<qmp::Client> client_;
};

}  // namespace qvm
