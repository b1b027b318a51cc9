#pragma once

#include <termios.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <optional>
#include <string_view>
#include <system_error>

#include "launcher/guest_command.h"
#include "netns/unique_fd.h"

namespace qvm {

/// Our own stdin, stdout or stderr, or what stands for it, for asynchronous use. Asio makes
/// descriptors non-blocking, which a terminal or pipe would be for everybody who shares it, the
/// shell after us included; so what can be opened anew is, and what cannot is put back as it was.
class Stdio {
  public:
    /// `fd` (0, 1 or 2, or a pipe or file) is borrowed. Throws Failure.
    Stdio(const boost::asio::any_io_executor& executor, int fd);
    Stdio(const Stdio&) = delete;
    Stdio& operator=(const Stdio&) = delete;
    ~Stdio();

    /// Bytes read; 0 at the end or on an error.
    boost::asio::awaitable<std::size_t> read_some(boost::asio::mutable_buffer buffer);
    /// Why not all was written; no error where it was.
    boost::asio::awaitable<std::error_code> write(std::string_view bytes);
    /// Ends what is under way, and puts the descriptor back as it was.
    void close();

  private:
    int original_;
    int saved_flags_ = -1;  ///< to be put back; -1: nothing was changed
    UniqueFd plain_;        ///< a file, or a device that cannot be waited for: it never blocks long
    std::optional<boost::asio::posix::stream_descriptor> stream_;
};

/// The terminal on stdin in raw mode for as long as this object lives. It is also put back when the
/// process is ended by a fault; only SIGKILL leaves it raw.
class RawTerminal {
  public:
    /// Nothing where stdin is not a terminal, or we are not in its foreground.
    static bool available();

    RawTerminal();
    RawTerminal(const RawTerminal&) = delete;
    RawTerminal& operator=(const RawTerminal&) = delete;
    ~RawTerminal();

    /// Sets raw mode again, after a stop by job control.
    void reapply() const noexcept;
    [[nodiscard]] static TerminalSize size();

  private:
    termios raw_{};
};

}  // namespace qvm
