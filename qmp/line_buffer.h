#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace qvm::qmp {

/// The default cap on a line, in bytes: query-qmp-schema's answer is some 200 kB, and the agent's
/// guest-exec-status carries at most 16 MiB of output a stream.
inline constexpr std::size_t default_max_line = std::size_t{16} << 20;

/// Cuts a stream of bytes into lines. Every byte is looked at once, however the input is chopped.
class LineBuffer {
  public:
    /// `max_line`: the longest line that is accepted, in bytes, without its newline.
    explicit LineBuffer(std::size_t max_line) : max_line_(max_line) {}

    /// Adds what was read. Lines that next() gave out before are no longer valid.
    void append(std::string_view bytes);

    /// The next whole line without its '\n', valid until append(); nothing when there is none yet
    /// or when it is too long. To be called until it gives nothing after each append().
    std::optional<std::string_view> next();

    /// Whether what next() has not given out is more than the longest line; a caller who does not
    /// call next() at the moment stops reading then.
    bool full() const { return buffer_.size() - begin_ > max_line_; }

    /// Whether next() stopped at a line (finished or not) above the cap. It stays so.
    bool too_long() const { return too_long_; }

  private:
    std::size_t max_line_;
    std::string buffer_;
    std::size_t begin_ = 0;    // of the line that next() looks for
    std::size_t scanned_ = 0;  // no newline between begin_ and here
    bool too_long_ = false;
};

}  // namespace qvm::qmp
