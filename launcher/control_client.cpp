#include "launcher/control_client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <system_error>
#include <thread>

#include "launcher/definition.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_state.h"
#include "netns/unique_fd.h"
#include "qmp/error.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;

Failure not_running(const Directories& directories, const std::string& name) {
    if (DefinitionStore{directories}.exists(name))
        return Failure(fmt::format("VM '{}': is not running", name), "qvm start " + name);
    return Failure(fmt::format("VM '{}': there is none of that name", name),
                   "qvm ps -a lists those that are");
}

namespace {

constexpr std::chrono::seconds answer_timeout{10};
constexpr std::chrono::seconds start_timeout{150};
constexpr std::chrono::milliseconds connect_pause{10};
constexpr std::chrono::milliseconds dying_pause{1};

bool has_ended(int pidfd) {
    pollfd exit{pidfd, POLLIN, 0};
    return ::poll(&exit, 1, 0) != 0;
}

/// A pidfd of whoever holds the VM's lock: while it does, its pid cannot be another's.
UniqueFd open_supervisor(const Directories& directories, const std::string& name) {
    const auto deadline = std::chrono::steady_clock::now() + answer_timeout;
    for (;;) {
        const auto pid = supervisor_of(directories.run, name);
        if (!pid) throw not_running(directories, name);
        UniqueFd fd{static_cast<int>(::syscall(SYS_pidfd_open, *pid, O_NONBLOCK))};
        const int error = errno;
        if (supervisor_of(directories.run, name) != pid) continue;  // it ended meanwhile
        if (fd) return fd;
        // One that has died lets go of its lock a moment later.
        if (error == ESRCH && std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(dying_pause);
            continue;
        }
        throw Failure(fmt::format("VM '{}': open its supervisor (pid {}): {}", name, *pid,
                                  std::generic_category().message(error)));
    }
}

/// Nothing where nobody listens just now.
std::optional<UniqueFd> connect(const std::filesystem::path& directory, const std::string& name) {
    auto socket = connect_to(directory / "control.sock");
    if (!socket && errno != ENOENT && errno != ECONNREFUSED)
        throw Failure(fmt::format("VM '{}': connect to its control socket: {}", name,
                                  std::generic_category().message(errno)));
    return socket;
}

}  // namespace

void rethrow(const std::exception_ptr& failure, const std::string& step) {
    try {
        std::rethrow_exception(failure);
    } catch (const ControlClient::Gone&) {
        throw;
    } catch (const Failure& why) {
        throw Failure(fmt::format("{}: {}", step, why.what()), why.hint(), why.exit_status());
    }
}

ControlClient::ControlClient(const asio::any_io_executor& executor, const Directories& directories,
                             const std::string& name)
    : name_(name),
      directory_(directories.run / name),
      supervisor_(executor, open_supervisor(directories, name).release()) {
    const auto vm = read_vm(directories.run, name);
    patience_ = vm && vm->text("state") != "starting" ? answer_timeout : start_timeout;
}

awaitable<void> ControlClient::ready() {
    const auto deadline = std::chrono::steady_clock::now() + patience_;
    const Gone gone{fmt::format("VM '{}': ended before it could be asked", name_)};
    const Silent silent{fmt::format("VM '{}': its supervisor does not answer", name_),
                        "qvm kill " + name_};
    auto socket = connect(directory_, name_);
    // It does not listen yet, or not any more.
    while (!socket && !co_await is_gone(connect_pause)) {
        if (std::chrono::steady_clock::now() >= deadline) throw silent;
        socket = connect(directory_, name_);
    }
    if (!socket) throw gone;
    client_ = std::make_unique<qmp::Client>(supervisor_.get_executor(), socket->release());
    try {
        co_await client_->handshake(std::chrono::duration_cast<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now()));
    } catch (const std::system_error& error) {
        if (client_->closed()) throw gone;
        throw silent;
    }
}

awaitable<boost::json::value> ControlClient::execute(std::string command,
                                                     boost::json::object arguments,
                                                     std::chrono::milliseconds timeout,
                                                     const char* step) {
    const std::string what = step != nullptr ? step : command;
    try {
        co_return co_await client_->execute(command, std::move(arguments), timeout);
    } catch (const qmp::CommandError& error) {
        throw Failure(fmt::format("VM '{}': {}: {}", name_, what, error.desc));
    } catch (const std::system_error& error) {
        if (client_->closed())
            throw Gone(fmt::format("VM '{}': ended, and did not say how", name_));
        throw Failure(fmt::format("VM '{}': {}: {}", name_, what, error.code().message()));
    }
}

void ControlClient::kill_supervisor() noexcept {
    ::syscall(SYS_pidfd_send_signal, supervisor_.native_handle(), SIGKILL, nullptr, 0U);
}

awaitable<void> ControlClient::until_gone() {
    // The reactor may wake us for what happened to a socket that was closed a moment ago.
    while (!has_ended(supervisor_.native_handle()))
        co_await supervisor_.async_wait(asio::posix::stream_descriptor::wait_read,
                                        asio::use_awaitable);
}

awaitable<bool> ControlClient::is_gone(std::chrono::milliseconds timeout) {
    using namespace asio::experimental::awaitable_operators;
    asio::steady_timer timer{supervisor_.get_executor(), timeout};
    co_await (until_gone() || timer.async_wait(asio::use_awaitable));
    co_return has_ended(supervisor_.native_handle());
}

}  // namespace qvm
