#pragma once

#include <sys/types.h>

#include <boost/asio/awaitable.hpp>
#include <filesystem>
#include <string>

#include "launcher/migration.h"
#include "launcher/snapshot.h"
#include "launcher/supervisor.h"

namespace qvm {

/// The machine of a VM as the files of a snapshot.
class MachineFiles {
  public:
    /// `run` and `migration` must outlive this object. Files that QEMU alone has are found among
    /// those of the process `qemu`, the disk's as what the kernel calls `overlay`.
    MachineFiles(const PreparedRun& run, Migration& migration, pid_t qemu, std::string overlay);

    /// Makes the machine the one that run.snapshot has; its memory, too, where QEMU has none of
    /// those files as its own. Throws Failure, and what the migration does.
    boost::asio::awaitable<void> load(bool has_memory);

    /// What a manifest says of the machine and what it needs. Throws Failure where that is another
    /// by now than when the VM was started, or where there is too much of it; else as load().
    boost::asio::awaitable<Manifest> manifest();
    /// Writes them to `directory`. The CPUs must stand still; they may go on when it returns.
    /// Throws as load().
    boost::asio::awaitable<void> save(std::filesystem::path directory);
    /// Adds those that do not change: the disks that the machine's own began with, and the seed.
    /// `manifest` must outlive it. Throws Failure.
    boost::asio::awaitable<void> adopt(std::filesystem::path directory, const Manifest& manifest);

  private:
    void check_outside_files() const;
    boost::asio::awaitable<void> fill_memory();
    [[nodiscard]] UniqueFd open_of_qemu(const std::string& target, int access) const;

    const PreparedRun& run_;
    Migration& migration_;
    pid_t qemu_;
    std::string overlay_;
};

}  // namespace qvm
