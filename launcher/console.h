#pragma once

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include "launcher/console_text.h"
#include "launcher/terminal.h"
#include "launcher/timings.h"
#include "netns/unique_fd.h"

namespace qvm {

/// The guest's serial console: to stdout and to a log, from stdin.
class Console {
  public:
    struct Handlers {
        std::function<void()> panicked;      ///< the kernel said so and stays so
        std::function<void()> stdout_gone;   ///< nobody reads what the guest prints
        std::function<void(bool now)> stop;  ///< the user asked for it, after Ctrl-]
    };

    /// Takes over `socket`, the far end of QEMU's serial chardev. The log is made new.
    /// Throws std::exception where stdin, stdout or the log cannot be used.
    Console(const boost::asio::any_io_executor& executor, UniqueFd socket,
            const std::filesystem::path& log, Handlers handlers);

    /// Both run until the console or their side of us is closed; spawn each once. With a terminal
    /// on stdin every key goes to the guest as it is typed. Piped input is held back until the
    /// guest asks for it: what a UART receives before its driver is up is lost.
    boost::asio::awaitable<void> pump_output();
    boost::asio::awaitable<void> pump_input();

    /// The guest's last words: the line that it printed last.
    [[nodiscard]] std::string last_line() const;
    /// What the guest's kernel said when it panicked, else its last words.
    [[nodiscard]] std::string panic_text() const;
    /// Sets the terminal up again after a stop by job control.
    void resume() const;
    [[nodiscard]] bool on_terminal() const noexcept { return raw_ != nullptr; }
    /// Gives the terminal back, for our own last messages.
    void release_terminal() { raw_.reset(); }

  private:
    void log(std::string_view bytes);
    void watch(std::string_view bytes);
    boost::asio::awaitable<void> wait_for_prompt();
    boost::asio::awaitable<bool> send(std::string_view bytes);
    boost::asio::awaitable<void> type(std::string_view keys);
    void answer(char key);

    boost::asio::local::stream_protocol::socket socket_;
    std::filesystem::path log_path_;
    UniqueFd log_;
    std::size_t log_size_ = 0;
    Handlers handlers_;
    Stdio input_;
    Stdio output_;
    std::unique_ptr<RawTerminal> raw_;
    LastLine lines_;
    std::string panic_reason_;
    boost::asio::steady_timer quiet_;  ///< runs while the guest prints nothing
    boost::asio::steady_timer panic_;  ///< the same, after a panic's last line
    bool discarding_ = false;          ///< stdout is gone
    bool asking_ = false;              ///< Ctrl-] was typed; the next key is the answer
};

}  // namespace qvm
