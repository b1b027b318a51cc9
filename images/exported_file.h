#pragma once

#include <sys/types.h>

#include <filesystem>

namespace qvm::images {

/// A new file that takes the place of `file` once it is whole, and goes with this object otherwise.
/// What is there keeps its owner, where we may give files away, and its mode.
class ExportedFile {
  public:
    /// In its directory, without a name: of a process that is killed nothing stays, where the file
    /// system can do that. It gets this mode, less the umask, where there is nothing, and else no
    /// more than that. Throws Error where what is there is no regular file, and std::system_error.
    ExportedFile(const std::filesystem::path& file, mode_t mode);
    ExportedFile(const ExportedFile&) = delete;
    ExportedFile& operator=(const ExportedFile&) = delete;
    ~ExportedFile();

    [[nodiscard]] int fd() const noexcept { return fd_; }
    [[nodiscard]] std::filesystem::path directory() const { return file_.parent_path(); }
    /// Beside `file`, by a name that nobody has or knows, and with the same ending: it has one from
    /// now on. Throws std::system_error.
    [[nodiscard]] const std::filesystem::path& path();
    /// Throws std::system_error.
    void keep();

  private:
    std::filesystem::path file_, aside_;
    bool has_name_ = false;  ///< aside_
    mode_t mode_;
    int fd_;
};

}  // namespace qvm::images
