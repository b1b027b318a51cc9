#include "launcher/control.h"

#include <fmt/format.h>

#include <limits>

#include "qmp/error.h"

namespace qvm {

namespace json = boost::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds default_timeout{10'000};

/// A member that is a number, as QAPI checks one.
double number(const qmp::Request& request, const char* key, double otherwise, double largest) {
    const auto* value = request.arguments.if_contains(key);
    if (value == nullptr) return otherwise;
    boost::system::error_code error;
    const auto number = value->to_number<double>(error);
    if (error)
        throw qmp::CommandError(
            request.command, "GenericError",
            fmt::format("Invalid parameter type for '{}', expected: number", key));
    if (!(number >= 0 && number <= largest))
        throw qmp::CommandError(request.command, "GenericError",
                                fmt::format("Parameter '{}' must be 0 to {}", key, largest));
    return number;
}

std::string text(const qmp::Request& request, const char* key) {
    const auto* value = request.arguments.if_contains(key);
    if (value == nullptr || !value->is_string())
        throw qmp::CommandError(
            request.command, "GenericError",
            fmt::format("Invalid parameter type for '{}', expected: string", key));
    return std::string{value->get_string()};
}

milliseconds timeout_of(const qmp::Request& request) {
    constexpr double longest = 86400.0 * 365;
    const auto seconds =
        number(request, "timeout", static_cast<double>(default_timeout.count()) / 1e3, longest);
    return milliseconds{static_cast<std::int64_t>(seconds * 1e3)};
}

}  // namespace

Controlled::Answer carry_out(Controlled& vm, qmp::Request request) {
    const auto& command = request.command;
    if (!command.starts_with("qvm-"))
        co_return co_await vm.pass_through(command, request.arguments);
    if (command == "qvm-stop") co_return co_await vm.stop(timeout_of(request));
    if (command == "qvm-kill") co_return co_await vm.kill();
    if (command == "qvm-wait") co_return co_await vm.wait();
    if (command == "qvm-restart") co_return co_await vm.restart(timeout_of(request));
    if (command == "qvm-wait-for") co_return co_await vm.wait_for(text(request, "stage"));
    if (command == "qvm-save") co_return co_await vm.save(text(request, "directory"));
    if (command == "qvm-inspect") co_return vm.inspect();
    if (command == "qvm-query-console") co_return json::object{{"attached", vm.console_clients()}};
    if (command == "qvm-resize-console") {
        constexpr double most = std::numeric_limits<unsigned short>::max();
        const auto rows = number(request, "rows", 0, most);
        const auto columns = number(request, "columns", 0, most);
        co_return co_await vm.resize_console(static_cast<unsigned>(rows),
                                             static_cast<unsigned>(columns));
    }
    throw qmp::CommandError(command, "CommandNotFound",
                            fmt::format("The command {} has not been found", command));
}

}  // namespace qvm
