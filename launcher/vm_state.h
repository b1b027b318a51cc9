#pragma once

#include <sys/types.h>

#include <boost/json/object.hpp>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launcher/definition.h"
#include "launcher/directories.h"
#include "launcher/values.h"
#include "netns/bridge_port.h"
#include "netns/plan.h"
#include "netns/unique_fd.h"

namespace qvm {

/// What a supervisor says of its VM, in `<run dir>/NAME/state.json`. The file is true while the
/// VM's lock is held; it is not what says that the VM lives.
struct VmState {
    std::string name;
    std::string state = "starting";  ///< starting, running, paused, stopping; stopped: no lock
    pid_t pid = 0;                   ///< the supervisor's
    pid_t qemu_pid = 0;
    std::string created = {};  ///< RFC 3339, UTC: when it was started, or created by `qvm create`
    bool named = false;        ///< by `qvm create`: it is there when it does not run, too
    bool agent = false;        ///< the guest agent answers
    bool leaving = false;      ///< no member of its group any more: it is about to end
    VmOptions vm = {};
    std::string snapshot_id = {};  ///< of the one that it began with
    std::optional<netns::NetworkPlan> network = {};
    std::optional<netns::GuestPlan> guest = {};
    std::optional<netns::PortPlan> port = {};          ///< on a bridge of the host's
    std::map<std::string, std::string> problems = {};  ///< about what: what; they may pass
    int namespace_fd = -1;                  ///< the supervisor's descriptor of the namespace
    std::vector<PublishOption> ports = {};  ///< as they were really bound
    boost::json::object disk = {};
    boost::json::array timings = {};
    std::optional<LastEnd> last_end = {};
};

/// As `qvm inspect` prints it, and `ps` the half of it. Pure.
boost::json::object to_json(const VmState& state);
boost::json::object to_short_json(const VmState& state);

/// What others need to know of a VM that lives: the same object, read back.
class LivingVm {
  public:
    explicit LivingVm(boost::json::object object) : object_(std::move(object)) {}

    /// The text at `path` ("net.address"); empty where there is none.
    [[nodiscard]] std::string text(const char* path) const;
    [[nodiscard]] std::int64_t number(const char* path) const;
    [[nodiscard]] bool flag(const char* path) const;
    [[nodiscard]] const boost::json::object& json() const noexcept { return object_; }

  private:
    [[nodiscard]] const boost::json::value* find(std::string_view path) const;

    boost::json::object object_;
};

/// Reads what the supervisor of a living VM wrote last; nothing where none of that name lives.
std::optional<LivingVm> read_vm(const std::filesystem::path& run, const std::string& name);
/// All that live, by name.
std::vector<LivingVm> read_vms(const std::filesystem::path& run);

/// A living VM's namespace, by its supervisor's own descriptor of it. This process, which must have
/// one thread, is in the user namespace that owns it then. Throws Failure.
UniqueFd open_namespace(const std::filesystem::path& run, const LivingVm& vm);

}  // namespace qvm
