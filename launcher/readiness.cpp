#include "launcher/readiness.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "launcher/failure.h"
#include "launcher/guest_script.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using Stage = WaitForOption::Stage;

namespace {

/// The line of `cloud-init status --long` that says what went wrong.
std::string cloud_init_problem(const GuestAnswer& answer) {
    if (answer.exit_status == status::not_found) return "the guest has no cloud-init";
    constexpr std::string_view detail = "detail:";
    const auto at = answer.out.find(detail);
    auto why = at == std::string::npos ? std::string{} : answer.out.substr(at + detail.size());
    std::replace(why.begin(), why.end(), '\n', ' ');
    while (why.ends_with(' ')) why.pop_back();
    return "cloud-init failed in the guest:" + (why.empty() ? " it does not say why" : why);
}

}  // namespace

Readiness::Readiness(const asio::any_io_executor& executor, GuestPorts& ports, Connect commands,
                     Handlers handlers)
    : executor_(executor),
      ports_(ports),
      commands_(std::move(commands)),
      handlers_(std::move(handlers)) {}

void Readiness::start(const std::vector<WaitForOption>& stages) {
    for (const auto& stage : stages) pending_.push_back({.stage = stage});
    for (auto& pending : pending_) watch(pending);
}

void Readiness::watch(Pending& pending) {
    switch (pending.stage.stage) {
        case Stage::agent:
            return;
        case Stage::log:
            pending.pattern.emplace(pending.stage.pattern);
            return;
        case Stage::cloud_init:
            return spawn(pending.stage, watch_cloud_init(pending));
        case Stage::ssh:
        case Stage::tcp:
            return spawn(pending.stage, watch_port(pending));
    }
}

void Readiness::spawn(const WaitForOption& stage, awaitable<void> work) {
    asio::co_spawn(executor_, std::move(work), [this, stage](std::exception_ptr failure) {
        if (!failure) return;
        try {
            std::rethrow_exception(failure);
        } catch (const std::exception& error) {
            handlers_.failed(fmt::format("wait for {}: {}", to_string(stage), error.what()));
        }
    });
}

awaitable<void> Readiness::watch_port(Pending& pending) {
    co_await ports_.until_open(pending.stage);
    reach(pending);
}

awaitable<void> Readiness::watch_cloud_init(Pending& pending) {
    constexpr int recoverable = 2;  // it has done what it could
    for (;;) {
        GuestCommand command;
        command.argv = {"cloud-init", "status", "--wait", "--long"};
        GuestAnswer answer;
        try {
            answer = co_await run_in_guest(executor_, commands_(), std::move(command));
        } catch (const Failure& failure) {
            if (failure.exit_status() != status::guest_died) throw;
            continue;  // it restarts the guest, if it was told to
        }
        if (answer.exit_status != status::ok && answer.exit_status != recoverable)
            throw Failure(cloud_init_problem(answer));
        co_return reach(pending);
    }
}

void Readiness::reach(const Pending& reached) {
    const auto stage = reached.stage;
    pending_.remove_if([&](const auto& pending) { return &pending == &reached; });
    handlers_.reached(stage);
    if (pending_.empty()) handlers_.ready();
}

template <typename Fits>
void Readiness::reach_all(Fits fits) {
    for (;;) {
        const auto found = std::find_if(pending_.begin(), pending_.end(), fits);
        if (found == pending_.end()) return;
        reach(*found);
    }
}

void Readiness::take_line(std::string_view line) {
    const std::string text{line};
    reach_all(
        [&](const auto& pending) { return pending.pattern && pending.pattern->matches(text); });
}

void Readiness::agent_is_up() {
    reach_all([](const auto& pending) { return pending.stage.stage == Stage::agent; });
}

bool Readiness::waits_for_agent() const {
    return std::any_of(pending_.begin(), pending_.end(),
                       [](const auto& pending) { return pending.stage.stage == Stage::agent; });
}

std::string Readiness::pending_text() const {
    if (pending_.empty()) return {};
    const auto& stage = pending_.front().stage;
    const auto why = [&]() -> std::string {
        switch (stage.stage) {
            case Stage::agent:
                return "no guest agent answered";
            case Stage::cloud_init:
                return "cloud-init was not done";
            case Stage::log:
                return "no line of the console fitted";
            case Stage::ssh:
            case Stage::tcp:
                break;
        }
        return ports_.problem(stage);
    };
    return fmt::format("phase '{}': {}", to_string(stage), why());
}

void check_wait_for(const RunOptions& options) {
    const auto mode = options.vm.net_or_default().mode;
    for (const auto& stage : options.wait_for) {
        const bool tcp = stage.stage == Stage::tcp;
        if (!tcp && stage.stage != Stage::ssh) continue;
        const auto what = "--wait-for " + to_string(stage);
        if (tcp && mode == NetOption::Mode::user)
            throw Failure(what + ": QEMU's user networking does not tell whether a port is open");
        try {
            (void)guest_endpoint(mode, {}, options.vm.publish, tcp ? stage.port : ssh_port);
        } catch (const Failure& failure) {
            throw Failure(what + ": " + failure.what(), failure.hint());
        }
    }
}

bool has_stage(const std::vector<WaitForOption>& stages, Stage stage) {
    return std::any_of(stages.begin(), stages.end(),
                       [&](const auto& option) { return option.stage == stage; });
}

std::vector<WaitForOption> stages_of(const RunOptions& options) {
    auto stages = options.wait_for;
    const bool only_boots = options.boot_timeout && stages.empty();
    const auto add = [&](Stage stage) {
        if (!has_stage(stages, stage)) stages.push_back({.stage = stage});
    };
    if (options.command && options.vm.user_data) add(Stage::cloud_init);
    if (options.command || options.restore_hook || only_boots ||
        has_stage(stages, Stage::cloud_init))
        add(Stage::agent);
    return stages;
}

}  // namespace qvm
