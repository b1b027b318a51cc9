#pragma once

#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "launcher/console_clients.h"
#include "launcher/console_text.h"
#include "launcher/terminal.h"
#include "launcher/timings.h"
#include "netns/unique_fd.h"

namespace qvm {

/// The guest's serial console: to a log and to whoever is attached: this process's own stdin and
/// stdout, and clients of a Unix socket.
class Console {
  public:
    struct Handlers {
        std::function<void()> panicked;              ///< the kernel said so and stays so
        std::function<void(std::string_view)> line;  ///< was printed, as a whole or as yet
        /// What the guest prints goes nowhere: its reader is gone (EPIPE), or the disk is full,
        /// say.
        std::function<void(std::error_code)> stdout_failed;
        std::function<void(bool now)> stop;  ///< the user asked for it, after Ctrl-]
        std::function<void()> detach;        ///< the same; may be empty
    };

    /// Takes over `socket`, the far end of QEMU's serial chardev, and `listener`, a listening Unix
    /// socket. The log is made new. Without `use_stdio` stdin and stdout are left alone. Throws
    /// std::exception where stdin, stdout or the log cannot be used.
    Console(const boost::asio::any_io_executor& executor, UniqueFd socket, UniqueFd listener,
            const std::filesystem::path& log, bool use_stdio, Handlers handlers);

    /// Both run until the console or their side of us is closed; spawn each once. With a terminal
    /// on stdin every key goes to the guest as it is typed. Piped input is held back until the
    /// guest asks for it: what a UART receives before its driver is up is lost.
    boost::asio::awaitable<void> pump_output();
    boost::asio::awaitable<void> pump_input();

    /// The guest's last words: the line that it printed last.
    [[nodiscard]] std::string last_line() const;
    /// The last lines that it printed, up to 10.
    [[nodiscard]] std::vector<std::string> last_lines() const;
    [[nodiscard]] bool shows_prompt() const { return is_prompt(lines_.open()); }
    /// What the guest's kernel said when it panicked, else its last words.
    [[nodiscard]] std::string panic_text() const;
    /// Sets the terminal up again after a stop by job control.
    void resume() const;
    [[nodiscard]] bool on_terminal() const noexcept { return local_ && local_->raw; }
    /// How many see it, and could write.
    [[nodiscard]] std::size_t attached() const noexcept {
        return clients_.count() + (on_terminal() ? 1 : 0);
    }
    /// Lets go of stdin and stdout, and gives the terminal back as it was.
    void leave_stdio();

  private:
    struct Local {
        explicit Local(const boost::asio::any_io_executor& executor);
        Stdio input;
        Stdio output;
        std::unique_ptr<RawTerminal> raw;
    };

    void log(std::string_view bytes);
    void watch(std::string_view bytes);
    boost::asio::awaitable<void> read_all();
    boost::asio::awaitable<void> show_all();
    boost::asio::awaitable<void> show(std::string_view bytes);
    boost::asio::awaitable<void> wait_for_prompt();
    boost::asio::awaitable<bool> send(std::string_view bytes);
    boost::asio::awaitable<void> type(std::string_view keys);
    void answer(char key);

    boost::asio::local::stream_protocol::socket socket_;
    std::filesystem::path log_path_;
    UniqueFd log_;
    std::size_t log_size_ = 0;
    Handlers handlers_;
    std::shared_ptr<Local> local_;  ///< shared with the pumps that are under way
    ConsoleClients clients_;
    LastLine lines_;
    std::deque<std::string> ended_lines_;  ///< the last few
    std::string panic_reason_;
    boost::asio::steady_timer quiet_;  ///< runs while the guest prints nothing
    boost::asio::steady_timer panic_;  ///< the same, after a panic's last line
    boost::asio::steady_timer news_;   ///< cancelled when there is more to show, or no more to come
    boost::asio::steady_timer room_;   ///< cancelled when less is left to show
    std::string unshown_;              ///< printed by the guest, and not yet by us
    bool all_read_ = false;
    bool discarding_ = false;  ///< stdout is gone
    bool asking_ = false;      ///< Ctrl-] was typed; the next key is the answer
};

}  // namespace qvm
