#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "launcher/awaken.h"
#include "launcher/unix_socket.h"
#include "netns/unique_fd.h"
#include "qmp/client.h"

namespace qvm {

/// Runs commands in the guest for whoever connects to a socket (SOCK_SEQPACKET), up to 20 at the
/// same time. A client sends a GuestCommand with "secret", and is sent {"streams": true} with three
/// descriptors, its ends of the command's stdin, stdout and stderr (or two: of its terminal, and of
/// what is said about its end): QEMU has the others, behind virtio-serial ports that are plugged in
/// for this command, so that what is read and written does not pass through this process. Then the
/// client may send {"pid": N, "signal": "INT"} and {"pid": N, "resize": "/dev/hvc0", "rows": N,
/// "columns": N}, and is sent {"waiting": "for ..."} where that takes long, {"note": "..."} that a
/// user should read, and {"error": "...", "exit_status": N} where the command cannot be run, or not
/// come to its end. It says {"pid": 0} when that has come: whoever leaves before has the command
/// sent SIGHUP.
///
/// A guest that has no shell, or shows no ports, has the command run by its agent alone, which
/// takes input as one piece and keeps the output until the end.
class ExecService {
  public:
    /// What a machine has for its first command. A shell that waits there saves that command the
    /// agent, and the start of a shell.
    struct ReadyPorts {
        unsigned long tag = 0;  ///< of the ports; those that are plugged in later have higher ones
        /// Of the ports, those that QEMU has included; none where the machine has no such ports.
        std::vector<SocketPair> sockets{};
        std::int64_t shell = 0;  ///< the agent's child that has opened them; 0: there is none
    };

    /// `monitor` and `agent` must outlive this object and be used on `executor`. For as
    /// long as `boot_patience` an agent is waited for that has not been up since the guest started.
    ExecService(const boost::asio::any_io_executor& executor, UniqueFd listener,
                qmp::Client& monitor, qmp::Client& agent,
                std::chrono::steady_clock::duration boot_patience, ReadyPorts ready);
    ~ExecService();
    ExecService(const ExecService&) = delete;
    ExecService& operator=(const ExecService&) = delete;

    /// A client's connection from within this process. Throws Failure.
    UniqueFd connect();

    /// A shell that waits in the guest tells it this, if there is one. Whether it has.
    boost::asio::awaitable<bool> tell(Awakening news);
    /// The next command's shell tells the guest this before. One that waits does not wait for the
    /// agent then.
    void begin_with(Awakening awakening);
    /// The agent answers: who waited for it goes on.
    void agent_is_up();
    /// It does not any more. What it has started may go on.
    void agent_is_down();
    /// QEMU says VSERPORT_CHANGE.
    void port_changed(const std::string& id, bool open);
    /// QEMU says DEVICE_DELETED.
    void device_deleted(const std::string& id);
    /// For as long as somebody holds what is returned, no command has a port in the guest, but for
    /// those that are ready, where a shell waits then if the guest has one and its CPUs run: those
    /// that come wait. Throws Failure where one runs, or where the guest keeps a port.
    boost::asio::awaitable<std::shared_ptr<void>> quiet(bool guest_runs);
    /// The tag of the ports that are ready, if there are any.
    [[nodiscard]] std::optional<unsigned long> ready_ports() const;
    /// ReadyPorts::shell
    [[nodiscard]] std::int64_t ready_shell() const;
    /// What runs in the guest is no more ("the guest restarted"), and neither is its agent. A
    /// command that waited for one still does.
    void guest_is_gone(const std::string& why);

  private:
    struct Core;
    std::shared_ptr<Core> core_;  ///< shared with the coroutines under way
};

}  // namespace qvm
