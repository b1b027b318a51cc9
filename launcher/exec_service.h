#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

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
    /// `monitor` and `agent` must outlive this object and be used on `executor`. For as
    /// long as `boot_patience` an agent is waited for that has not been up since the guest started.
    /// `ready`: the sockets of the ports that the machine has already for the first command
    /// (QemuSpec::ready_ports), those that QEMU has included; none where it has no such ports.
    ExecService(const boost::asio::any_io_executor& executor, UniqueFd listener,
                qmp::Client& monitor, qmp::Client& agent,
                std::chrono::steady_clock::duration boot_patience,
                std::vector<SocketPair> ready = {});
    ~ExecService();
    ExecService(const ExecService&) = delete;
    ExecService& operator=(const ExecService&) = delete;

    /// A client's connection from within this process. Throws Failure.
    UniqueFd connect();

    /// The next command's shell carries out this script before.
    void begin_with(std::string script);
    /// The agent answers: who waited for it goes on.
    void agent_is_up();
    /// It does not any more. What it has started may go on.
    void agent_is_down();
    /// QEMU says VSERPORT_CHANGE.
    void port_changed(const std::string& id, bool open);
    /// QEMU says DEVICE_DELETED.
    void device_deleted(const std::string& id);
    /// For as long as somebody holds what is returned, no command has a port in the guest, but for
    /// those that are ready: those that come wait. Throws Failure where one runs, or where the
    /// guest keeps a port.
    boost::asio::awaitable<std::shared_ptr<void>> quiet();
    /// Whether no command has used the ports that were ready.
    [[nodiscard]] bool has_ready_ports() const;
    /// What runs in the guest is no more ("the guest restarted"), and neither is its agent. A
    /// command that waited for one still does.
    void guest_is_gone(const std::string& why);

  private:
    struct Core;
    std::shared_ptr<Core> core_;  ///< shared with the coroutines under way
};

}  // namespace qvm
