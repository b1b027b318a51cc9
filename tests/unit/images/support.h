#pragma once

#include <filesystem>
#include <functional>
#include <string>

namespace qvm::images::test {

/// A directory that is gone again at the end of the test.
class TemporaryDirectory {
  public:
    TemporaryDirectory();
    ~TemporaryDirectory();
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

    std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

  private:
    std::filesystem::path path_;
};

/// An open file, closed at the end of its scope.
class File {
  public:
    File(const std::filesystem::path& path, int flags);
    ~File();
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    int fd() const { return fd_; }

  private:
    int fd_;
};

std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, const std::string& bytes);

/// What a shell command prints, standard error included; a status other than 0 is a failed test.
std::string output_of(const std::string& shell_command);

/// The text of the images::Error that `function` throws; fails the test if it throws none.
std::string error_of(const std::function<void()>& function);

}  // namespace qvm::images::test
