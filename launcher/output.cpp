#include "launcher/output.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <string>
#include <system_error>

#include "launcher/failure.h"

namespace qvm {

std::string printable(std::string_view text) {
    std::string shown;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto c = static_cast<unsigned char>(text[i]);
        const unsigned next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
        const bool is_c1 = c == 0xc2 && next >= 0x80 && next < 0xa0;
        const bool is_control = (c < 0x20 && c != '\n') || c == 0x7f;
        shown += is_c1 || is_control ? '?' : text[i];
        if (is_c1) ++i;
    }
    return shown;
}

void say(std::string_view line) noexcept {
    try {
        const auto text = printable(line) + '\n';
        std::fwrite(text.data(), 1, text.size(), stderr);
    } catch (const std::bad_alloc&) {
        std::fputs("qvm: out of memory\n", stderr);
    }
}

int say_failure(const Failure& failure) noexcept {
    say(std::string{"qvm: "} + failure.what());
    if (!failure.hint().empty()) say("hint: " + failure.hint());
    return failure.exit_status();
}

int say_failure() noexcept {
    try {
        throw;
    } catch (const Failure& failure) {
        return say_failure(failure);
    } catch (const std::bad_alloc&) {
        say("qvm: out of memory");
        return status::failed;
    } catch (const std::filesystem::filesystem_error& error) {
        say("qvm: look at '" + error.path1().string() + "': " + error.code().message());
        return status::failed;
    } catch (const std::exception& error) {
        say(std::string{"qvm: "} + error.what());
        return status::failed;
    }
}

void end_without_reader() {
    ::signal(SIGPIPE, SIG_DFL);
    ::raise(SIGPIPE);
}

bool try_print(std::string_view text) {
    const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
    return std::fflush(stdout) == 0 && written;
}

void cannot_print(int error) {
    if (error == EPIPE) end_without_reader();
    throw Failure("write to stdout: " + std::generic_category().message(error));
}

void print(std::string_view text) {
    if (!try_print(text)) cannot_print(errno);
}

bool use_colour() {
    const auto variable = [](const char* name) {
        const char* value = std::getenv(name);
        return std::string_view{value != nullptr ? value : ""};
    };
    return ::isatty(STDOUT_FILENO) == 1 && variable("NO_COLOR").empty() &&
           !variable("TERM").empty() && variable("TERM") != "dumb";
}

}  // namespace qvm
