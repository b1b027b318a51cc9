// qvm exec: a command in a running guest.

#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/guest_process.h"
#include "launcher/output.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;

namespace {

class Exec {
  public:
    explicit Exec(const ExecOptions& options)
        : options_(options),
          directories_(find_directories()),
          control_(context_.get_executor(), directories_, options.name) {
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH}) signals_.add(number);
    }

    int operator()() {
        asio::co_spawn(context_, run(), [this](std::exception_ptr failure) {
            failure_ = failure;
            context_.stop();
        });
        asio::co_spawn(context_, watch_signals(), asio::detached);
        context_.run();
        if (failure_) rethrow(failure_, fmt::format("exec in '{}'", options_.name));
        return exit_status_;
    }

  private:
    awaitable<void> run() {
        co_await control_.ready();
        auto service = connect_to(directories_.run / options_.name / "exec.sock", SOCK_SEQPACKET);
        if (!service) throw not_running(directories_, options_.name);
        process_.emplace(context_.get_executor(), std::move(*service), options_.command,
                         options_.interactive,
                         GuestNotes{.waiting =
                                        [](const std::string& what) {
                                            if (::isatty(STDERR_FILENO) != 0)
                                                say("qvm: waiting " + what);
                                        },
                                    .note = [](const std::string& text) { say("qvm: " + text); }});
        exit_status_ = co_await process_->end();
    }

    /// The first of a kind is for the command, as with docker; who sends it again wants us gone.
    awaitable<void> watch_signals() {
        int last = 0;
        for (;;) {
            const int number = co_await signals_.async_wait(asio::use_awaitable);
            if (number == SIGWINCH) {
                if (process_) process_->resize();
                continue;
            }
            if (number != last && process_ && process_->signal(number)) {
                last = number;
                continue;
            }
            exit_status_ = status::signalled + number;
            context_.stop();
        }
    }

    const ExecOptions& options_;
    asio::io_context context_{1};
    Directories directories_;
    ControlClient control_;
    asio::signal_set signals_{context_};
    std::optional<GuestProcess> process_;
    std::exception_ptr failure_;
    int exit_status_ = status::ok;
};

}  // namespace

int exec(const ExecOptions& options) {
    return Exec{options}();
}

}  // namespace qvm
