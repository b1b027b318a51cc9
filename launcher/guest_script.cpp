#include "launcher/guest_script.h"

#include "launcher/guest_process.h"
#include "launcher/memory_file.h"

namespace qvm {

boost::asio::awaitable<GuestAnswer> run_in_guest(boost::asio::any_io_executor executor,
                                                 UniqueFd service, GuestCommand command) {
    const MemoryFile out, err;
    const GuestNotes silent{.waiting = [](const std::string&) {},
                            .note = [](const std::string&) {}};
    const GuestStreams streams{.in = -1, .out = out.fd(), .err = err.fd()};
    GuestProcess process{executor, std::move(service), command, false, silent, streams};
    const int exit_status = co_await process.end();
    co_return GuestAnswer{exit_status, out.text(), err.text()};
}

}  // namespace qvm
