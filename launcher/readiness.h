#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <functional>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/guest_ports.h"
#include "launcher/options.h"
#include "launcher/pattern.h"
#include "netns/unique_fd.h"

namespace qvm {

/// Finds out when a guest has come as far as its user wants it: through several stages, at the same
/// time and in any order.
class Readiness {
  public:
    struct Handlers {
        std::function<void(const WaitForOption&)> reached;
        std::function<void()> ready;                         ///< all were
        std::function<void(const std::string& why)> failed;  ///< one never will be
    };

    using Connect = std::function<UniqueFd()>;  ///< to the ExecService

    /// `ports` must outlive this object, and the executor runs no more when it goes.
    Readiness(const boost::asio::any_io_executor& executor, GuestPorts& ports, Connect commands,
              Handlers handlers);

    /// Begins; to be called once.
    void start(const std::vector<WaitForOption>& stages);
    /// Of the guest's console: a line, whole or not yet.
    void take_line(std::string_view line);
    void agent_is_up();

    /// Whether the agent is what is waited for.
    [[nodiscard]] bool waits_for_agent() const;
    /// The first stage that is not reached, and why: "phase 'ssh': ..."
    [[nodiscard]] std::string pending_text() const;

  private:
    struct Pending {
        WaitForOption stage;
        std::optional<Pattern> pattern{};
    };

    template <typename Fits>
    void reach_all(Fits fits);
    void watch(Pending& pending);
    void reach(const Pending& pending);
    boost::asio::awaitable<void> watch_port(Pending& pending);
    boost::asio::awaitable<void> watch_cloud_init(Pending& pending);
    void spawn(const WaitForOption& stage, boost::asio::awaitable<void> work);

    boost::asio::any_io_executor executor_;
    GuestPorts& ports_;
    Connect commands_;
    Handlers handlers_;
    std::list<Pending> pending_;
};

/// Throws Failure for a stage of --wait-for that nobody could see from here. Pure.
void check_wait_for(const RunOptions& options);

/// All that a run waits for: what its user asked for, and what that, or a command, takes. Pure.
std::vector<WaitForOption> stages_of(const RunOptions& options);

/// Whether one of them is of that kind. Pure.
bool has_stage(const std::vector<WaitForOption>& stages, WaitForOption::Stage stage);

}  // namespace qvm
