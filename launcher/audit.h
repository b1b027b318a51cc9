#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/directories.h"
#include "launcher/options.h"
#include "launcher/vm_plan.h"
#include "netns/host_picture.h"

namespace qvm {

/// What `after` has not and what it has more, section by section: "- link ...", "+ link ...". Pure.
std::vector<std::string> difference(const netns::HostPicture& before,
                                    const netns::HostPicture& after);

/// The host before a run and after it, as far as a run could change it. Other VMs come and go
/// meanwhile; what is theirs is not looked at.
class Audit {
  public:
    /// Looks at the host, and from now on has the orphans of our children as its own children: one
    /// that outlives its parent is seen. Throws Failure.
    Audit(Directories directories, const RunOptions& options);
    Audit(const Audit&) = delete;
    Audit& operator=(const Audit&) = delete;
    ~Audit();

    /// What the run makes, once that is known.
    void expect(const VmPlan& plan);

    /// How the host differs from what it was, to be asked when all of the run is over; empty where
    /// it does not. Blocks for 2 s at most where it does: the kernel takes namespaces back behind
    /// the scenes. Throws Failure.
    std::vector<std::string> differences();

  private:
    [[nodiscard]] netns::HostPicture look() const;
    [[nodiscard]] bool is_network_shared() const;
    [[nodiscard]] std::vector<std::string> left_in_run_directory() const;

    Directories directories_;
    std::optional<std::string> name_;     ///< the VM's
    std::optional<std::string> group_;    ///< its group's
    std::optional<std::string> network_;  ///< its network's id
    int was_subreaper_ = 0;
    std::set<std::string>
        inherited_;  ///< ids of children of who has become qvm by exec: not its own
    netns::HostPicture before_;
};

}  // namespace qvm
