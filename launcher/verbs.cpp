// What is done to VMs that live, or that were created: stop, kill, wait, pause, resume, restart,
// rm, qmp. Several at once, each with its own outcome.

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <optional>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/definition.h"
#include "launcher/events.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/sweep.h"

namespace qvm {

namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;
using Verb = VerbOptions::Verb;

namespace {

constexpr auto command_timeout = 30s;
constexpr auto end_timeout = 10min;  // of a VM that writes to the user's image
constexpr auto endless = 24h * 365;

/// One VM's outcome.
struct Outcome {
    std::string printed;  ///< on stdout
    std::string note;     ///< on stderr
    int exit_status = status::ok;
    std::string hint = {};
};

json::object timeout_of(const VerbOptions& options) {
    return {{"timeout", static_cast<double>(options.timeout.count()) / 1e3}};
}

std::string in_seconds(std::chrono::milliseconds time) {
    return fmt::format("{} s", static_cast<double>(time.count()) / 1e3);
}

awaitable<Outcome> stop(ControlClient& vm, const std::string& name, const VerbOptions& options) {
    Outcome outcome{name, fmt::format("{}: ended", name)};
    try {
        co_await vm.ready();
        const auto answer =
            co_await vm.execute("qvm-stop", timeout_of(options), options.timeout + end_timeout);
        if (text_in(answer, "how") == "powered-off")
            outcome.note = fmt::format("{}: the guest powered down", name);
        else if (options.timeout > 0ms)
            outcome.note = fmt::format("{}: the guest did not power down within {} and was ended",
                                       name, in_seconds(options.timeout));
    } catch (const ControlClient::Gone&) {
        // Somebody else was faster.
    }
    co_await vm.until_gone();
    co_return outcome;
}

/// Also where nobody answers any more.
awaitable<Outcome> kill(const Directories& directories, const std::string& name) {
    Outcome outcome{name, {}};
    const auto executor = co_await asio::this_coro::executor;
    std::optional<ControlClient> found;
    try {
        found.emplace(executor, directories, name);
    } catch (const Failure&) {
        sweep(directories);  // it may have died while we were on our way
        throw;
    }
    auto& vm = *found;
    try {
        co_await vm.ready();
        co_await vm.execute("qvm-kill", {}, end_timeout);
    } catch (const ControlClient::Gone&) {
        // All the better.
    } catch (const ControlClient::Silent&) {
        vm.kill_supervisor();
        outcome.note = fmt::format("{}: its supervisor did not answer and was killed", name);
    }
    co_await vm.until_gone();
    sweep(directories);
    co_return outcome;
}

/// Until it is gone; its exit status.
awaitable<int> end_of(const Directories& directories, const std::string& name) {
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    std::exception_ptr gone;
    try {
        co_await vm.ready();
        const auto answer = co_await vm.execute("qvm-wait", {}, endless);
        co_await vm.until_gone();
        co_return static_cast<int>(number_in(answer, "exit-status"));
    } catch (const ControlClient::Gone&) {
        gone = std::current_exception();
    }
    co_await vm.until_gone();
    std::rethrow_exception(gone);
}

/// A VM that was created keeps how it ended.
awaitable<Outcome> wait(const Directories& directories, const std::string& name) {
    std::exception_ptr failure;
    try {
        const int exit_status = co_await end_of(directories, name);
        co_return Outcome{std::to_string(exit_status), {}, exit_status};
    } catch (const Failure&) {
        failure = std::current_exception();
    }
    const bool lives = supervisor_of(directories.run, name).has_value();
    if (!lives) sweep(directories);  // which says how, if it was killed
    const auto end = lives ? std::nullopt : DefinitionStore{directories}.last_end(name);
    if (!end) std::rethrow_exception(failure);
    co_return Outcome{std::to_string(end->exit_status), {}, end->exit_status};
}

awaitable<Outcome> restart(ControlClient& vm, const std::string& name, const VerbOptions& options) {
    const auto answer =
        co_await vm.execute("qvm-restart", timeout_of(options), options.timeout + end_timeout);
    const bool off = text_in(answer, "how") == "powered-off";
    co_return Outcome{
        name, fmt::format("{}: {}", name,
                          off ? "the guest powered down and boots again" : "the guest was reset")};
}

awaitable<Outcome> one(const Directories& directories, const std::string& name,
                       const VerbOptions& options) {
    if (options.verb == Verb::kill) co_return co_await kill(directories, name);
    if (options.verb == Verb::wait) co_return co_await wait(directories, name);
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    if (options.verb == Verb::stop) co_return co_await stop(vm, name, options);
    co_await vm.ready();
    if (options.verb == Verb::restart) co_return co_await restart(vm, name, options);
    co_await vm.execute(options.verb == Verb::pause ? "stop" : "cont", {}, command_timeout);
    co_return Outcome{name, {}};
}

Outcome outcome_of(const std::exception_ptr& failure) {
    Outcome outcome;
    outcome.exit_status = status::failed;
    try {
        std::rethrow_exception(failure);
    } catch (const Failure& error) {
        outcome.note = error.what();
        outcome.hint = error.hint();
    } catch (const std::exception& error) {
        outcome.note = error.what();
    }
    return outcome;
}

/// Whether it could be printed.
bool show(const Outcome& outcome) {
    if (!outcome.note.empty()) say("qvm: " + outcome.note);
    if (!outcome.hint.empty()) say("hint: " + outcome.hint);
    return outcome.printed.empty() || try_print(outcome.printed + "\n");
}

/// Does it to all of them at the same time. Each outcome is shown as soon as it is its name's turn;
/// a reader that has seen enough does not keep the rest from being done. An exit status: the first
/// that is not 0.
template <typename Work>
int for_each(const std::vector<std::string>& names, Work work) {
    raise_descriptor_limit();
    asio::io_context context{1};
    int print_error = 0;
    std::vector<std::optional<Outcome>> outcomes(names.size());
    std::size_t shown = 0;
    int exit_status = status::ok;
    for (std::size_t i = 0; i < names.size(); ++i)
        asio::co_spawn(context, work(names[i]),
                       [&, i](const std::exception_ptr& failure, Outcome outcome) {
                           outcomes[i] = failure ? outcome_of(failure) : std::move(outcome);
                           for (; shown < names.size() && outcomes[shown]; ++shown) {
                               if (print_error == 0 && !show(*outcomes[shown])) print_error = errno;
                               if (exit_status == status::ok)
                                   exit_status = outcomes[shown]->exit_status;
                           }
                       });
    context.run();
    if (print_error != 0) cannot_print(print_error);
    return exit_status;
}

awaitable<void> kill_if_there(const Directories& directories, const std::string& name) {
    try {
        co_await kill(directories, name);
    } catch (const Failure&) {
        if (supervisor_of(directories.run, name)) throw;
    }
}

awaitable<Outcome> remove_one(const Directories& directories, const std::string& name, bool force) {
    const DefinitionStore store{directories};
    const bool created = store.exists(name);
    const auto pid = supervisor_of(directories.run, name);
    if (!created && !(pid && force)) {
        if (pid)
            throw Failure(fmt::format("VM '{}': is running, and is gone when it ends", name),
                          "qvm stop " + name);
        throw not_running(directories, name);
    }
    if (pid && !force)
        throw Failure(fmt::format("VM '{}': is running (pid {})", name, *pid),
                      fmt::format("qvm stop {0}, or qvm rm -f {0}", name));
    if (pid) co_await kill_if_there(directories, name);
    if (created) {
        const VmDirectory reserved{directories.run, name};  // nobody starts it now
        store.remove(name);
        announce(directories, "removed", name);
    }
    co_return Outcome{name, {}};
}

json::object arguments_of(const QmpOptions& options) {
    if (options.arguments.empty()) return {};
    boost::system::error_code error;
    auto value = json::parse(options.arguments, error);
    if (error || !value.is_object())
        throw Failure(
            fmt::format("qmp: the arguments '{}' are not a JSON object", options.arguments));
    return std::move(value.get_object());
}

awaitable<Outcome> execute(const Directories& directories, const QmpOptions& options) {
    auto arguments = arguments_of(options);
    ControlClient vm{co_await asio::this_coro::executor, directories, options.name};
    co_await vm.ready();
    try {
        const auto answer = co_await vm.execute(options.command, std::move(arguments), endless);
        co_return Outcome{json::serialize(answer), {}};
    } catch (const ControlClient::Gone&) {
        // A QEMU that obeyed need not have answered.
        if (options.command != "quit") throw;
    }
    co_return Outcome{"{}", {}};
}

}  // namespace

int verb(const VerbOptions& options) {
    const auto directories = find_directories();
    return for_each(options.names,
                    [&](const std::string& name) { return one(directories, name, options); });
}

int remove(const RemoveOptions& options) {
    const auto directories = find_directories();
    return for_each(options.names, [&](const std::string& name) {
        return remove_one(directories, name, options.force);
    });
}

int qmp_command(const QmpOptions& options) {
    const auto directories = find_directories();
    return for_each({options.name},
                    [&](const std::string&) { return execute(directories, options); });
}

}  // namespace qvm
