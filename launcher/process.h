#pragma once

#include <signal.h>
#include <sys/types.h>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/confinement.h"
#include "netns/unique_fd.h"

namespace qvm {

/// Blocks every signal for as long as it lives; what comes meanwhile is delivered after it.
class BlockedSignals {
  public:
    BlockedSignals();
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;
    ~BlockedSignals();

  private:
    sigset_t saved_;
};

/// How a child is started.
struct SpawnSpec {
    std::vector<std::string> argv;  ///< argv[0] is looked up in PATH
    /// A descriptor of ours (borrowed) and the number that the child has it under. Everything
    /// else above 2 is closed in the child, whether it is close-on-exec or not.
    struct Inherit {
        int fd;
        int as;
    };
    std::vector<Inherit> inherit = {};
    int stdin_fd = -1;                            ///< -1: /dev/null
    int stdout_fd = -1;                           ///< -1: /dev/null
    int stderr_fd = -1;                           ///< -1: /dev/null
    int network_namespace = -1;                   ///< enters it first; -1: stays in ours
    std::string directory = {};                   ///< where it starts; empty: where we are
    std::optional<Confinement> confinement = {};  ///< unset: it may what we may
    bool ignore_hangup = false;  ///< SIGHUP is ignored, until it says otherwise itself
    int granted_file = -1;       ///< GrantedFile::child_end(), with a confinement; -1: none
};

/// How a child ended.
struct ExitStatus {
    int code = 0;    ///< valid when signal is 0
    int signal = 0;  ///< the signal that ended it, else 0
    /// "exit status 1", "signal 11 (Segmentation fault)"
    [[nodiscard]] std::string describe() const;
};

/// A child process that never outlives us: the kernel kills it when this process (its one thread)
/// dies, and the destructor kills it and waits.
class Child {
  public:
    /// Starts it: vfork, so that no copy of ours holds descriptors while it is on its way to exec.
    /// Throws Failure ("start 'NAME': REASON").
    static Child spawn(const SpawnSpec& spec);

    Child(Child&& other) noexcept = default;
    Child& operator=(Child&& other) noexcept;
    ~Child();

    /// Ends when the process has ended; safe to call once. Cancellable.
    boost::asio::awaitable<ExitStatus> wait();
    /// The same, blocking.
    ExitStatus wait_blocking();
    /// Sends a signal; nothing happens when the process has ended.
    void signal(int number) noexcept;
    [[nodiscard]] pid_t pid() const noexcept { return pid_; }

  private:
    Child(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
    ExitStatus reap();

    pid_t pid_ = -1;
    UniqueFd pidfd_;  ///< none once it was waited for
};

/// As many descriptors as we may have; children start with the limit that we were started with.
void raise_descriptor_limit() noexcept;

/// Becomes another program (execvp(3)), which minds SIGPIPE again. Returns only where it cannot be
/// started: the errno value.
[[nodiscard]] int become(const std::vector<std::string>& argv);

/// Finds a program in PATH as execvp(3) would.
std::optional<std::string> find_program(const std::string& name);

/// A tool to run to its end.
struct Tool {
    std::vector<std::string> argv;
    std::string input = {};                        ///< all of its stdin
    std::string directory = {};                    ///< where it starts; empty: where we are
    std::vector<SpawnSpec::Inherit> inherit = {};  ///< as in SpawnSpec
    std::optional<Confinement> confinement = {};   ///< likewise
    /// It is killed when it has printed nothing on stdout for so long; unset: never.
    std::optional<std::chrono::seconds> patience = {};
    int stop = -1;  ///< it is killed when this descriptor can be read; -1: there is none
    /// Is told what it prints, in pieces, while it runs: on stdout, on stderr. What that throws
    /// ends the tool.
    std::function<void(std::string_view)> on_output = {}, on_error = {};
};

/// What it left behind.
struct ToolResult {
    ExitStatus status;
    /// The first 8 MiB of either, at most.
    std::string out;
    std::string err;
    /// By itself, or killed by us: for want of patience, or since it was to stop.
    enum class End { itself, impatience, stopped };
    End end = End::itself;
};

/// Runs a tool and collects what it prints. Blocks. SIGPIPE must be ignored: a tool need not read
/// its input. Throws Failure where it cannot be started.
ToolResult run_tool(const Tool& tool);
ToolResult run_tool(const std::vector<std::string>& argv, const std::string& input = {});

}  // namespace qvm
