#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/directories.h"
#include "launcher/firmware.h"
#include "launcher/options.h"
#include "netns/unique_fd.h"

namespace qvm {

/// Makes the paths of all files absolute, seen from where this process is.
void make_absolute(VmOptions& options);

/// That a VM's options can be had with its network. Throws Failure. Pure.
void check_network(const VmOptions& vm);

/// A VM's options as JSON, with the command line's words, and back. Paths stay as they are.
/// Reading throws Failure with the member that is wrong.
boost::json::object to_json(const VmOptions& options);
VmOptions vm_options_from(const boost::json::object& object);

/// A VM that was created: what `<data>/vm/NAME/definition.json` says.
struct Definition {
    std::string name;
    VmOptions vm;
    std::string created;                 ///< RFC 3339, UTC
    std::uint64_t virtual_size = 0;      ///< bytes, of the image when the overlay was made
    std::uint64_t image_modified = 0;    ///< ns since the epoch, the same
    std::optional<Firmware> firmware{};  ///< whose variables it has, where it boots by UEFI
};

/// Pure. Members that are not known are ignored within a version; another version is refused.
std::string to_text(const Definition& definition);
Definition parse_definition(const std::string& name, const std::string& text);

/// How its last life ended.
struct LastEnd {
    int exit_status = 0;
    std::string message;
    std::string at;  ///< RFC 3339, UTC
};

/// The VMs that were created, in Directories::vms(). A definition is there as a whole or not at
/// all, whatever ends the process or the power.
class DefinitionStore {
  public:
    explicit DefinitionStore(const Directories& directories) : directory_(directories.vms()) {}

    /// The file names within a VM's directory.
    static constexpr const char* overlay_name = "overlay.qcow2";
    static constexpr const char* variables_name = "variables";  ///< of UEFI
    static constexpr const char* tpm_name = "tpm";

    [[nodiscard]] bool exists(const std::string& name) const;
    [[nodiscard]] std::vector<std::string> names() const;
    /// Throws Failure where there is none of that name, or none that can be read.
    [[nodiscard]] Definition read(const std::string& name) const;
    /// Throws Failure when the name is taken.
    void check_free(const std::string& name) const;
    /// Keeps a definition, an empty overlay (where there is an image), and what its firmware and
    /// its TPM keep. Throws Failure when the name is taken, or when it cannot be written, and then
    /// nothing is left.
    void add(const Definition& definition) const;
    /// Removes all of it. The caller holds the VM's run directory, so that it cannot be started.
    void remove(const std::string& name) const;

    [[nodiscard]] std::filesystem::path path(const std::string& name) const {
        return directory_ / name;
    }

    /// Keeps how a life ended, and the console log in the VM's run directory; a failure is no
    /// error.
    void keep_end(const std::string& name, const LastEnd& end,
                  const std::filesystem::path& run_directory) const noexcept;
    [[nodiscard]] std::optional<LastEnd> last_end(const std::string& name) const;
    /// At the start of a life, which may end without a word.
    void forget_end(const std::string& name) const noexcept;

    /// Removes what was never finished; how many.
    [[nodiscard]] std::size_t sweep() const;

  private:
    std::filesystem::path directory_;
};

/// Now, as RFC 3339 says it: 2026-01-31T12:00:00Z
std::string timestamp();
/// The same of a time in seconds since the epoch.
std::string timestamp(std::time_t time);

}  // namespace qvm
