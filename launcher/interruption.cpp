#include "launcher/interruption.h"

#include <fmt/format.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "launcher/failure.h"
#include "launcher/process.h"

namespace qvm {

Interruption::Interruption() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::sigaddset(&set, number);
    ::sigprocmask(SIG_BLOCK, &set, &saved_);
    fd_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!fd_) throw Failure("wait for signals: " + reason());
}

void Interruption::check() const {
    signalfd_siginfo info{};
    if (::read(fd_.get(), &info, sizeof info) != sizeof info) return;
    const int number = static_cast<int>(info.ssi_signo);
    throw Failure(fmt::format("ended by {}", ExitStatus{.signal = number}.describe()), {},
                  status::signalled + number);
}

}  // namespace qvm
