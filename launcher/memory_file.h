#pragma once

#include <string>
#include <string_view>

#include "netns/unique_fd.h"

namespace qvm {

/// A file in memory, which goes with its last descriptor (memfd_create(2)).
class MemoryFile {
  public:
    /// With these bytes. Throws Failure.
    explicit MemoryFile(std::string_view bytes = {});
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// Gives up its descriptor, for reading and writing.
    [[nodiscard]] UniqueFd release() { return std::move(fd_); }
    /// Its first bytes, up to 64 KiB.
    [[nodiscard]] std::string text() const;
    /// Another descriptor of it, for reading only. Throws Failure.
    [[nodiscard]] UniqueFd open_for_reading() const;

  private:
    UniqueFd fd_;
};

/// The first that is not empty, without its end, and what comes after: of errors, that is mostly
/// consequences.
std::string first_line(const std::string& text);

}  // namespace qvm
