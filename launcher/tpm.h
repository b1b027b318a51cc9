#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "launcher/last_words.h"
#include "netns/unique_fd.h"

namespace qvm {

/// swtpm's command, with QEMU's connection and the TPM's state as those descriptors. Pure.
std::vector<std::string> swtpm_command(int connection, int state);

/// The root directory that swtpm has: the system's software, and its own descriptors by name. Reads
/// the host's directories. Throws std::filesystem::filesystem_error.
std::vector<RootEntry> root_of_swtpm();

/// A state in memory: a TPM as it leaves the factory, gone with its last descriptor. Throws
/// Failure.
UniqueFd make_tpm_state();

/// The same as the new file `path`, in a directory that is ours alone. Throws Failure.
void make_named_tpm_state(const std::filesystem::path& path);

/// A VM's TPM: a swtpm that sees nothing of the host but its state.
class Tpm {
  public:
    /// `died` is told of a swtpm that ended before QEMU. It must outlive this object, and the
    /// executor runs no more when this object goes.
    Tpm(const boost::asio::any_io_executor& executor, Report debug,
        std::function<void(const std::string&)> died)
        : executor_(executor),
          debug_(std::move(debug)),
          died_(std::move(died)),
          process_(executor) {}

    /// Starts it with that state (borrowed), confined unless there is nothing to confine it by.
    /// Returns QEMU's connection. Throws Failure.
    UniqueFd start(int state, std::optional<Confinement> confinement);
    /// How it has failed; empty where it has not.
    [[nodiscard]] const std::string& trouble() const noexcept { return end_; }

  private:
    boost::asio::awaitable<void> watch();

    boost::asio::any_io_executor executor_;
    Report debug_;
    std::function<void(const std::string&)> died_;
    Process process_;
    std::string end_;
};

}  // namespace qvm
