#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "images/runner.h"

// What is common to building disks; not for callers outside this library.
namespace qvm::images {

/// Runs a command that has to succeed and returns its standard output. Throws Error with `what`
/// and the last line that the program wrote.
std::string run_step(const Runner& run, const Command& command, std::string_view what);

/// A directory that is gone with all that is in it at the end of its scope.
class TemporaryDirectory {
  public:
    /// In `parent`, which exists. Throws std::system_error.
    explicit TemporaryDirectory(const std::filesystem::path& parent);
    ~TemporaryDirectory();
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

/// Throws Error.
void write_file(const std::filesystem::path& path, std::string_view bytes);

/// Writes a raw disk image as a qcow2 one into `to`, a file that is there, compressed or not.
void convert_to_qcow2(const std::filesystem::path& raw, const std::filesystem::path& to,
                      bool compress, const Runner& run);

}  // namespace qvm::images
