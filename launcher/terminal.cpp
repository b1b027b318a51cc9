#include "launcher/terminal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "launcher/failure.h"
#include "launcher/process.h"

namespace qvm {

namespace asio = boost::asio;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);

termios saved_terminal;  // for the fault handler, which can reach nothing else
constexpr std::array faults{SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};

void restore_and_die(int number) {
    ::tcsetattr(STDIN_FILENO, TCSANOW, &saved_terminal);
    ::raise(number);  // SA_RESETHAND: now with its default action
}

bool is_terminal_or_pipe(int fd) {
    struct stat status {};
    return ::fstat(fd, &status) == 0 && (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode));
}

/// A descriptor of the same terminal or pipe with a file description of its own.
UniqueFd open_anew(int fd) {
    if (!is_terminal_or_pipe(fd)) return {};
    int access = ::fcntl(fd, F_GETFL) & O_ACCMODE;
    if (access == O_RDWR) access = fd == STDIN_FILENO ? O_RDONLY : O_WRONLY;
    const auto path = fmt::format("/proc/self/fd/{}", fd);
    return UniqueFd{::open(path.c_str(), access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
}

}  // namespace

Stdio::Stdio(const asio::any_io_executor& executor, int fd) : original_(fd) {
    auto own = open_anew(fd);
    const bool shared = !own;
    if (shared) own.reset(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    constexpr std::array names{"use stdin", "use stdout", "use stderr"};
    const std::string step = fd < 3 ? names.at(static_cast<std::size_t>(fd)) : "use a pipe";
    if (!own) throw Failure(step + ": " + std::generic_category().message(errno));
    stream_.emplace(executor);
    boost::system::error_code error;
    stream_->assign(own.get(), error);
    if (error && error != boost::system::errc::operation_not_permitted)
        throw Failure(step + ": " + error.message());
    if (error) {  // a file, or /dev/null
        stream_.reset();
        plain_ = std::move(own);
        return;
    }
    (void)own.release();
    if (shared) saved_flags_ = ::fcntl(fd, F_GETFL);
}

Stdio::~Stdio() {
    close();
}

void Stdio::close() {
    boost::system::error_code ignored;
    if (stream_) stream_->close(ignored);
    if (saved_flags_ >= 0) ::fcntl(original_, F_SETFL, std::exchange(saved_flags_, -1));
}

asio::awaitable<std::size_t> Stdio::read_some(asio::mutable_buffer buffer) {
    if (!stream_) {
        const auto size = ::read(plain_.get(), buffer.data(), buffer.size());
        co_return size > 0 ? static_cast<std::size_t>(size) : 0;
    }
    const auto [error, size] = co_await stream_->async_read_some(buffer, no_throw);
    co_return error ? 0 : size;
}

asio::awaitable<std::error_code> Stdio::write(std::string_view bytes) {
    if (stream_) {
        const auto [error, size] =
            co_await asio::async_write(*stream_, asio::buffer(bytes), no_throw);
        co_return error;
    }
    while (!bytes.empty()) {
        const auto size = ::write(plain_.get(), bytes.data(), bytes.size());
        if (size < 0 && errno == EINTR) continue;
        if (size < 0) co_return std::error_code{errno, std::generic_category()};
        bytes.remove_prefix(static_cast<std::size_t>(size));
    }
    co_return std::error_code{};
}

bool RawTerminal::available() {
    return ::isatty(STDIN_FILENO) && ::tcgetpgrp(STDIN_FILENO) == ::getpgrp();
}

RawTerminal::RawTerminal() {
    ::tcgetattr(STDIN_FILENO, &saved_terminal);
    raw_ = saved_terminal;
    ::cfmakeraw(&raw_);
    raw_.c_oflag |= OPOST;  // our own messages still begin at the left
    struct sigaction action {};
    action.sa_handler = restore_and_die;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    for (const int fault : faults) ::sigaction(fault, &action, nullptr);
    reapply();
}

void RawTerminal::reapply() const noexcept {
    // From the background the kernel would stop us (SIGTTOU).
    if (available()) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw_);
}

RawTerminal::~RawTerminal() {
    const BlockedSignals blocked;  // SIGTTOU would stop us in the background, before it is done
    ::tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_terminal);
    for (const int fault : faults) ::signal(fault, SIG_DFL);
}

TerminalSize RawTerminal::size() {
    winsize size{};
    ::ioctl(STDIN_FILENO, TIOCGWINSZ, &size);
    return {size.ws_row, size.ws_col};
}

}  // namespace qvm
