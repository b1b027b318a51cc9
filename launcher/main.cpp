#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/options.h"
#include "launcher/timings.h"

namespace {

struct Execute {
    qvm::Timings& timings;

    int operator()(const qvm::RunOptions& options) const { return qvm::run(options, timings); }
    int operator()(const qvm::ImageDemoOptions& options) const { return qvm::image_demo(options); }
    int operator()(const qvm::PrintText& print) const {
        fmt::print("{}", print.text);
        return qvm::status::ok;
    }
};

/// A descriptor of ours must not become the stdin, stdout or stderr that our caller closed.
void open_missing_stdio() {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
        if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", O_RDWR);  // takes the lowest: this one
}

}  // namespace

int main(int argc, char** argv) {
    open_missing_stdio();
    qvm::Timings timings{qvm::time_of_exec()};
    ::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of the write
    try {
        return std::visit(Execute{timings}, qvm::parse_command_line(argc, argv));
    } catch (const qvm::Failure& failure) {
        fmt::print(stderr, "qvm: {}\n", failure.what());
        if (!failure.hint().empty()) fmt::print(stderr, "hint: {}\n", failure.hint());
        return failure.exit_status();
    } catch (const std::exception& error) {
        fmt::print(stderr, "qvm: {}\n", error.what());
        return qvm::status::failed;
    }
}
