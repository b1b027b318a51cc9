#include "launcher/kept_process.h"

#include <signal.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <optional>

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

// In a group it may fail at first: what it needs (addresses, a TAP's name) is still held by another
// member's, which is on its way out.
constexpr int most_failures = 100;
constexpr auto start_pause = 20ms;
constexpr auto is_up = 1s;  // what lives so long has not failed at its start
// What ends it later (the kernel for want of memory, a guest's packets) must not end the guests,
// nor keep a CPU busy.
constexpr auto longest_pause = 1s;

awaitable<void> collect(std::shared_ptr<Process> process, Report report) {
    co_await process->words.collect(std::move(report));
}

}  // namespace

struct KeptProcess::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor_, SpawnSpec spec_, Handlers handlers_)
        : executor(executor_), spec(std::move(spec_)), handlers(std::move(handlers_)) {}

    void start() {
        process = std::make_shared<Process>(executor);
        process->start(spec);
        asio::co_spawn(executor, collect(process, handlers.debug), asio::detached);
    }

    void signal(int number) noexcept {
        if (process && process->child) process->child->signal(number);
    }

    /// Until it ends; why.
    awaitable<std::string> end_of_process() {
        std::optional<ExitStatus> how;
        while (!how) {
            try {
                how = co_await process->child->wait();
            } catch (const std::exception& error) {
                handlers.debug(error.what());
            }
            if (how) break;
            asio::steady_timer pause{executor, longest_pause};
            co_await pause.async_wait(asio::use_awaitable);
        }
        process->child.reset();
        co_await asio::post(executor, asio::use_awaitable);  // the last of its stderr
        co_return spec.argv.front() + " died: " + process->words.text_or(how->describe());
    }

    /// Why it could not; nothing where it could.
    std::string start_again() {
        try {
            start();
            return {};
        } catch (const std::exception& error) {
            return error.what();
        }
    }

    /// Starts it again whenever it ends.
    awaitable<void> watch() {
        using Clock = std::chrono::steady_clock;
        const auto self = shared_from_this();
        asio::steady_timer timer{executor};
        Clock::duration pause = start_pause;
        bool was_up = false;
        std::string why;
        for (int failures = 0;;) {
            const auto began = Clock::now();
            if (why.empty()) {
                why = co_await end_of_process();
                ++failures;
            }
            if (stopped) co_return;
            const bool came_up = Clock::now() - began >= is_up;
            if (came_up)
                handlers.note(why + "; it is started again");
            else
                handlers.debug(why);
            was_up = was_up || came_up;
            const bool hopeless = !was_up && failures >= most_failures;
            if (hopeless && handlers.cannot) co_return handlers.cannot(why);
            if (came_up)
                pause = start_pause;
            else if (was_up || hopeless)
                pause = std::min<Clock::duration>(2 * pause, longest_pause);
            timer.expires_after(pause);
            co_await timer.async_wait(asio::use_awaitable);
            if (stopped) co_return;
            why = start_again();
        }
    }

    asio::any_io_executor executor;
    SpawnSpec spec;
    Handlers handlers;
    std::shared_ptr<Process> process;
    bool stopped = false;
};

KeptProcess::KeptProcess(const asio::any_io_executor& executor, SpawnSpec spec, Handlers handlers)
    : state_(std::make_shared<State>(executor, std::move(spec), std::move(handlers))) {
    state_->start();
    asio::co_spawn(executor, state_->watch(), asio::detached);
}

KeptProcess::~KeptProcess() {
    stop();
}

void KeptProcess::signal(int number) noexcept {
    state_->signal(number);
}

void KeptProcess::stop() noexcept {
    state_->stopped = true;
    state_->signal(SIGKILL);
}

}  // namespace qvm
