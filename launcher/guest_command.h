#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/awaken.h"

/// A command in the guest, started by the guest agent, with stdin, stdout and stderr on
/// virtio-serial ports of its own. Pure.
namespace qvm {

struct TerminalSize {
    unsigned rows = 0;
    unsigned columns = 0;
};

struct GuestCommand {
    std::vector<std::string> argv{};
    std::vector<std::string> environment{};  ///< "NAME=value", or "NAME" for the client's value
    std::string directory{};                 ///< empty: the agent's
    std::string user{};                      ///< NAME|UID[:GROUP|GID]; empty: the agent's
    std::optional<TerminalSize> terminal{};  ///< its stdin, stdout and stderr; 0: of unknown size
};

/// As JSON and back, for the supervisor's exec.sock. Throws Failure for what is none.
boost::json::object to_json(const GuestCommand& command);
GuestCommand parse_guest_command(const boost::json::object& object);

/// The name of a port: what the guest's kernel shows in /sys/class/virtio-ports/*/name. `stream` is
/// "in", "out" or "err"; a terminal is a console's port, which has another name to the guest.
std::string guest_port_name(std::string_view stream, unsigned long tag);

/// The arguments of guest-exec (qga/qapi-schema.json) for a script, which the shell reads from its
/// stdin: a guest's own users are not to find it in their ps(1), and what it has of a command may
/// be any bytes. It has no parameters.
boost::json::object guest_script_arguments(const std::string& script);

/// The arguments of guest-exec (qga/qapi-schema.json) that run it. The guest needs a POSIX shell,
/// sysfs and devtmpfs, and for a terminal setsid. What the ports say beside the command's own
/// output, on the port of stderr, is what GuestStderr reads; `secret`, which the command does not
/// know, keeps it from being forged by accident. Before it runs the guest is told its `awakening`,
/// if there is one.
boost::json::object guest_exec_arguments(const GuestCommand& command, unsigned long tag,
                                         const std::string& secret,
                                         const std::optional<Awakening>& awakening = {});

/// The same of a shell that opens the ports, says guest_waits on that of stderr, and waits there
/// for requests, which are sent to the port of stdin as guest_request() has them. After one it says
/// and does that again, unless it becomes a command.
boost::json::object guest_wait_arguments(unsigned long tag);
inline constexpr std::string_view guest_waits = "ready\n";
/// `words` are lines of shell, none of which is `mark`: awaken_call(), guest_becomes(), or
/// guest_prepares, after which it can do the former at once.
std::string guest_request(const std::string& words, const std::string& mark);
std::string guest_becomes(const GuestCommand& command, const std::string& secret);
inline constexpr const char* guest_prepares = "start_awakener 3\n";

/// The same where the guest has no ports for it: the agent itself starts it, with `input` as its
/// stdin, and keeps what it writes until it has ended. The guest needs nothing else. Throws Failure
/// for what needs a shell there.
boost::json::object guest_capture_arguments(const GuestCommand& command, std::string_view input);

/// What guest-exec-status says of that.
struct GuestCapture {
    std::string out;
    std::string err;
    int exit_status = 0;     ///< as a shell has it
    bool truncated = false;  ///< there was more
};
/// Nothing where it has not ended. Throws Failure for what is no answer.
std::optional<GuestCapture> parse_guest_capture(const boost::json::value& answer);

/// What a port says first on stderr, and last on stdout and stderr.
std::string guest_begin(const std::string& secret, std::int64_t pid);
std::string guest_end(const std::string& secret, const std::string& word);

/// The arguments of guest-exec that tell a terminal ("/dev/hvc0") its size.
boost::json::object guest_resize_arguments(const std::string& terminal, TerminalSize size);

/// That shell's own exit status where the guest shows no ports.
inline constexpr int guest_has_no_ports = 9;

/// The arguments of guest-exec that send a signal ("INT") to a process of the guest, and to its
/// group where it leads one.
boost::json::object guest_kill_arguments(std::int64_t pid, const std::string& signal);

/// What comes out of a port: what the command writes there, until a mark says that this is all,
/// with a word of its own. Sans I/O.
class GuestOutput {
  public:
    explicit GuestOutput(const std::string& secret);

    /// What the command has written of these bytes, and of those that were held back before.
    std::string feed(std::string_view bytes);
    /// What was held back, where there is no more to come.
    std::string finish();
    /// What the mark says; nothing before it has come.
    [[nodiscard]] const std::optional<std::string>& end() const noexcept { return end_; }

  private:
    std::string mark_;
    std::string held_;  ///< may be the mark's beginning, or is all from there
    std::optional<std::string> end_;
};

/// The same of stderr, with a line before it that has the command's process ID, and the exit status
/// behind the mark.
class GuestStderr {
  public:
    explicit GuestStderr(const std::string& secret);

    std::string feed(std::string_view bytes);
    std::string finish();

    /// There once the command is started.
    [[nodiscard]] const std::optional<std::int64_t>& pid() const noexcept { return pid_; }
    /// The command's terminal; empty without one.
    [[nodiscard]] const std::string& terminal() const noexcept { return terminal_; }
    /// There once it has ended: as a shell has it, 128 + N for a signal; 126 and 127 where it could
    /// not be started.
    [[nodiscard]] std::optional<int> exit_status() const;

  private:
    std::string prefix_;  ///< of the line with the process ID
    std::string begin_;   ///< may be that line
    bool begun_ = false;  ///< that was decided
    std::optional<std::int64_t> pid_;
    std::string terminal_;
    GuestOutput output_;
};

}  // namespace qvm
