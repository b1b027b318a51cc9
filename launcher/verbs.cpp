// What is done to VMs that live, or that were created: stop, kill, wait, pause, resume, restart,
// rm, qmp. Several at once, each with its own outcome.

#include <fmt/format.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/definition.h"
#include "launcher/events.h"
#include "launcher/output.h"
#include "launcher/sweep.h"

namespace qvm {

namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;
using Verb = VerbOptions::Verb;

namespace {

constexpr auto command_timeout = 30s;
constexpr auto answer_timeout = 10s;  // of a supervisor, before it is killed
constexpr auto end_timeout = 10min;   // of a VM that writes to the user's image
constexpr auto endless = 24h * 365;

/// One VM's outcome.
struct Outcome {
    std::string printed;  ///< on stdout
    std::string note;     ///< on stderr
    int exit_status = status::ok;
    bool failed = false;
    std::string hint = {};
};

json::object timeout_of(const VerbOptions& options) {
    return {{"timeout", static_cast<double>(options.timeout.count()) / 1e3}};
}

std::string text_of(const json::value& answer, const char* key) {
    const auto* object = answer.if_object();
    const auto* value = object == nullptr ? nullptr : object->if_contains(key);
    return value != nullptr && value->is_string() ? std::string{value->get_string()} : "";
}

int status_of(const json::value& answer) {
    const auto* object = answer.if_object();
    const auto* value = object == nullptr ? nullptr : object->if_contains("exit-status");
    return value != nullptr && value->is_int64() ? static_cast<int>(value->get_int64()) : 0;
}

std::string in_seconds(std::chrono::milliseconds time) {
    return fmt::format("{} s", static_cast<double>(time.count()) / 1e3);
}

awaitable<Outcome> stop(ControlClient& vm, const std::string& name, const VerbOptions& options) {
    Outcome outcome{name, fmt::format("{}: ended", name)};
    try {
        const auto answer =
            co_await vm.execute("qvm-stop", timeout_of(options), options.timeout + end_timeout);
        if (text_of(answer, "how") == "powered-off")
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
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    try {
        co_await vm.ready(answer_timeout);
        co_await vm.execute("qvm-kill", {}, end_timeout);
    } catch (const ControlClient::Gone&) {
        // All the better.
    } catch (const Failure&) {
        vm.kill_supervisor();
        outcome.note = fmt::format("{}: its supervisor did not answer and was killed", name);
    }
    co_await vm.until_gone();
    sweep(directories);
    co_return outcome;
}

awaitable<Outcome> wait(ControlClient& vm) {
    const auto answer = co_await vm.execute("qvm-wait", {}, endless);
    co_await vm.until_gone();
    const int exit_status = status_of(answer);
    co_return Outcome{std::to_string(exit_status), {}, exit_status};
}

awaitable<Outcome> restart(ControlClient& vm, const std::string& name, const VerbOptions& options) {
    const auto answer =
        co_await vm.execute("qvm-restart", timeout_of(options), options.timeout + end_timeout);
    const bool off = text_of(answer, "how") == "powered-off";
    co_return Outcome{
        name, fmt::format("{}: {}", name,
                          off ? "the guest powered down and boots again" : "the guest was reset")};
}

awaitable<Outcome> one(const Directories& directories, const std::string& name,
                       const VerbOptions& options) {
    const DefinitionStore store{directories};
    // A VM that was created keeps how it ended.
    if (options.verb == Verb::wait && !supervisor_of(directories.run, name))
        if (const auto end = store.last_end(name))
            co_return Outcome{std::to_string(end->exit_status), {}, end->exit_status};
    if (options.verb == Verb::kill) co_return co_await kill(directories, name);
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    co_await vm.ready();
    switch (options.verb) {
        case Verb::stop:
            co_return co_await stop(vm, name, options);
        case Verb::kill:
            break;  // done above
        case Verb::wait:
            co_return co_await wait(vm);
        case Verb::restart:
            co_return co_await restart(vm, name, options);
        case Verb::pause:
            co_await vm.execute("stop", {}, command_timeout);
            break;
        case Verb::resume:
            co_await vm.execute("cont", {}, command_timeout);
            break;
    }
    co_return Outcome{name, {}};
}

Outcome outcome_of(const std::exception_ptr& failure) {
    Outcome outcome;
    outcome.failed = true;
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

/// Does it to all of them at the same time; their outcomes in the order of the names. An exit
/// status: the first that is not 0.
template <typename Work>
int for_each(const std::vector<std::string>& names, Work work) {
    asio::io_context context{1};
    std::vector<Outcome> outcomes(names.size());
    for (std::size_t i = 0; i < names.size(); ++i)
        asio::co_spawn(context, work(names[i]),
                       [&outcomes, i](const std::exception_ptr& failure, Outcome outcome) {
                           outcomes[i] = failure ? outcome_of(failure) : std::move(outcome);
                       });
    context.run();
    int exit_status = status::ok;
    for (const auto& outcome : outcomes) {
        if (!outcome.note.empty()) say("qvm: " + outcome.note);
        if (!outcome.hint.empty()) say("hint: " + outcome.hint);
        if (!outcome.printed.empty()) print(outcome.printed + "\n");
        if (exit_status == status::ok) exit_status = outcome.exit_status;
    }
    return exit_status;
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
    if (pid) co_await kill(directories, name);
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
    const auto answer = co_await vm.execute(options.command, std::move(arguments), endless);
    co_return Outcome{json::serialize(answer), {}};
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
