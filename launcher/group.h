#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/directories.h"
#include "netns/plan.h"
#include "netns/unique_fd.h"

/// VMs that share one network namespace.
///
/// The namespace is a reference count in the kernel: each member's supervisor holds descriptors of
/// it, of the host's rules and of the claimed addresses. One member leads: it holds the lock of
/// `<run dir>/.groups/GROUP/leader`, runs dnsmasq and the DNS relay, and hands the descriptors to
/// those who join, over leader.sock. When it dies, the kernel drops its lock, the connections end,
/// and the first of the others to get the lock leads. Who is a member, and with which address, is
/// what the state files of living VMs say.
namespace qvm {

/// A network's plan as JSON and back; reading throws std::exception.
std::string to_text(const netns::NetworkPlan& plan);
netns::NetworkPlan parse_network_plan(const std::string& text);

/// The guests of a group that live and have not left it, but for the VM `besides`.
std::vector<netns::GuestPlan> group_guests(const std::filesystem::path& run,
                                           const std::string& group,
                                           const std::string& besides = {});

/// A place in a group, taken before anything is created.
class GroupSeat {
  public:
    /// Leads the group where it has no members, else joins it. Blocks, for seconds at most.
    /// Throws Failure.
    GroupSeat(const Directories& directories, const std::string& group, const std::string& vm);
    GroupSeat(GroupSeat&&) = default;
    GroupSeat& operator=(GroupSeat&&) = default;
    ~GroupSeat();

    /// What was joined; nothing for the leader, who makes the network.
    [[nodiscard]] const std::optional<netns::NetworkPlan>& joined() const noexcept { return plan_; }
    /// Network's descriptors, for who joined. Given away.
    [[nodiscard]] std::vector<UniqueFd> take_shared() { return std::move(shared_); }
    /// The namespace that was joined (borrowed), for who joined and has not taken it.
    [[nodiscard]] int space() const { return shared_.at(0).get(); }
    /// Whose addresses are taken in what was joined. They stay as they are until settled().
    [[nodiscard]] std::vector<netns::GuestPlan> others() const;
    /// Our address is in our state file: others may choose theirs.
    void settled() { members_lock_.reset(); }

    [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }

  private:
    friend class Group;
    bool try_to_lead();
    bool try_to_join(int timeout_ms);

    std::filesystem::path run_;
    std::string group_;
    std::string vm_;
    std::filesystem::path directory_;
    UniqueFd members_lock_;
    UniqueFd leader_lock_;
    UniqueFd listener_;    ///< the leader's
    UniqueFd connection_;  ///< to the leader
    std::optional<netns::NetworkPlan> plan_;
    std::vector<UniqueFd> shared_;
};

/// Removes the directory of a group that has no members but the VM `besides`; whether it did.
bool sweep_group(const std::filesystem::path& directory, const std::string& besides = {});

/// A seat while its VM runs.
class Group {
  public:
    struct Handlers {
        std::function<void()> lead;     ///< this member leads from now on
        std::function<void()> changed;  ///< somebody came or went, and we lead
        /// Told why it could not take the lead, or why one of the two threw: both are called again,
        /// since a run directory that is full is no reason to end a guest.
        std::function<void(const std::string&)> failed;
    };
    /// `plan` and `shared` (borrowed) are what those who join are given.
    Group(const boost::asio::any_io_executor& executor, GroupSeat seat,
          const netns::NetworkPlan& plan, std::vector<int> shared, Handlers handlers);
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;
    ~Group();

    /// Leads, or waits until this member is to lead. Runs until leave().
    boost::asio::awaitable<void> mind();
    /// Gives the lead to others. Whether there are any; of members that leave at the same moment,
    /// the last is told that there are none. `tell` is to write that into our state file.
    bool leave(const std::function<void()>& tell = [] {});

  private:
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace qvm
