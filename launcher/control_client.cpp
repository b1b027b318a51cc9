#include "launcher/control_client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <system_error>

#include "launcher/definition.h"
#include "launcher/unix_socket.h"
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

ControlClient::ControlClient(const asio::any_io_executor& executor, const Directories& directories,
                             const std::string& name)
    : name_(name) {
    if (!supervisor_of(directories.run, name)) throw not_running(directories, name);
    auto socket = connect_to(directories.run / name / "control.sock");
    if (!socket) {
        const int error = errno;
        if (!supervisor_of(directories.run, name)) throw not_running(directories, name);
        throw Failure(fmt::format("VM '{}': connect to its control socket: {}", name,
                                  std::generic_category().message(error)));
    }
    // While it is connected its pid cannot be another's.
    supervisor_.reset(
        static_cast<int>(::syscall(SYS_pidfd_open, peer_pid(socket->get()), O_NONBLOCK)));
    client_ = std::make_unique<qmp::Client>(executor, socket->release());
}

awaitable<void> ControlClient::ready(std::chrono::milliseconds timeout) {
    try {
        co_await client_->handshake(timeout);
    } catch (const std::system_error& error) {
        if (client_->closed()) throw Gone(fmt::format("VM '{}': ended while it started", name_));
        throw Failure(fmt::format("VM '{}': its supervisor does not answer", name_));
    }
}

awaitable<boost::json::value> ControlClient::execute(std::string command,
                                                     boost::json::object arguments,
                                                     std::chrono::milliseconds timeout) {
    try {
        co_return co_await client_->execute(command, std::move(arguments), timeout);
    } catch (const qmp::CommandError& error) {
        throw Failure(fmt::format("VM '{}': {}: {}", name_, command, error.desc));
    } catch (const std::system_error& error) {
        if (client_->closed())
            throw Gone(fmt::format("VM '{}': ended, and did not say how", name_));
        throw Failure(fmt::format("VM '{}': {}: {}", name_, command, error.code().message()));
    }
}

void ControlClient::kill_supervisor() noexcept {
    ::syscall(SYS_pidfd_send_signal, supervisor_.get(), SIGKILL, nullptr, 0U);
}

awaitable<void> ControlClient::until_gone() {
    if (!supervisor_) co_return;
    asio::posix::stream_descriptor pidfd{co_await asio::this_coro::executor, supervisor_.release()};
    // The reactor may wake us for what happened to a socket that was closed a moment ago.
    pollfd exit{pidfd.native_handle(), POLLIN, 0};
    while (::poll(&exit, 1, 0) == 0)
        co_await pidfd.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
}

}  // namespace qvm
