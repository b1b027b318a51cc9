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

/// RFC 4253, section 4.2.
constexpr const char* ssh_banner = "SSH-";
constexpr std::uint16_t ssh_port = 22;

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

/// Whether the guest's port 22 can be reached by somebody.
bool publishes_ssh(const VmOptions& vm) {
    return std::any_of(vm.publish.begin(), vm.publish.end(), [](const auto& port) {
        return port.guest_port == 22 && !port.udp && port.host_address.is_v4();
    });
}

}  // namespace

Readiness::Readiness(const asio::any_io_executor& executor, Guest guest, Handlers handlers)
    : executor_(executor), guest_(std::move(guest)), handlers_(std::move(handlers)) {}

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
            break;
    }
    pending.port.emplace(guest_port(executor_, guest_, pending.stage));
    spawn(pending.stage, watch_port(pending));
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
    co_await pending.port->until_open();
    reach(pending);
}

awaitable<void> Readiness::watch_cloud_init(Pending& pending) {
    constexpr int recoverable = 2;  // it has done what it could
    for (;;) {
        GuestCommand command;
        command.argv = {"cloud-init", "status", "--wait", "--long"};
        GuestAnswer answer;
        try {
            answer = co_await run_in_guest(executor_, guest_.commands(), std::move(command));
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
    const auto& first = pending_.front();
    const auto why = first.port                               ? first.port->problem()
                     : first.stage.stage == Stage::cloud_init ? "cloud-init was not done"
                     : first.stage.stage == Stage::log        ? "no line of the console fitted"
                                                              : "no guest agent answered";
    return fmt::format("phase '{}': {}", to_string(first.stage), why);
}

void check_wait_for(const RunOptions& options) {
    const auto mode = options.vm.net_or_default().mode;
    for (const auto& stage : options.wait_for) {
        if (stage.stage != Stage::ssh && stage.stage != Stage::tcp) continue;
        const auto what = "--wait-for " + to_string(stage);
        if (mode == NetOption::Mode::none)
            throw Failure(what + ": a guest with --net none has no network");
        if (mode != NetOption::Mode::user) continue;
        if (stage.stage == Stage::tcp)
            throw Failure(what + ": QEMU's user networking does not tell whether a port is open");
        if (!publishes_ssh(options.vm))
            throw Failure(what + ": --net user has no way to the guest's port 22",
                          "-p 2222:22 makes one");
    }
}

std::vector<WaitForOption> stages_of(const RunOptions& options) {
    auto stages = options.wait_for;
    const auto add = [&](Stage wanted) {
        const bool there = std::any_of(stages.begin(), stages.end(),
                                       [&](const auto& stage) { return stage.stage == wanted; });
        if (!there) stages.push_back({.stage = wanted});
    };
    if (options.command && options.vm.user_data) add(Stage::cloud_init);
    const bool runs_there = std::any_of(stages.begin(), stages.end(), [](const auto& stage) {
        return stage.stage == Stage::cloud_init;
    });
    if (options.command || runs_there || (options.boot_timeout && stages.empty()))
        add(Stage::agent);
    return stages;
}

GuestPort guest_port(const asio::any_io_executor& executor, const Readiness::Guest& guest,
                     const WaitForOption& stage) {
    const bool ssh = stage.stage == Stage::ssh;
    return GuestPort{executor, guest.space(), guest.endpoint(ssh ? ssh_port : stage.port),
                     ssh ? ssh_banner : ""};
}

}  // namespace qvm
