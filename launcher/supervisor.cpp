// The life of one VM, as one io_context on one thread:
//
//   set-up      namespace and network, overlay, QEMU (stopped), dnsmasq beside it
//   watching    QMP events until QEMU is gone; the console; dnsmasq; signals; the time-out
//   teardown    begins when the guest is off or when one of the watchers ends the VM
//
// The first cause of an end is the one that is reported.

#include "launcher/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <memory>
#include <system_error>

#include "launcher/console.h"
#include "launcher/failure.h"
#include "launcher/process.h"
#include "netns/dns_relay.h"
#include "netns/network.h"
#include "qmp/client.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using namespace asio::experimental::awaitable_operators;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto start_timeout = 60s;    // of QEMU to its greeting, on a host that is very busy
constexpr auto command_timeout = 10s;  // of one QMP command
constexpr auto powerdown_grace = 10s;  // docker's, too
constexpr auto exit_grace = 3s;        // of a killed QEMU, to be gone
constexpr auto write_grace = 5min;     // of one that still writes to the user's image
constexpr auto drain_grace = 10s;      // of whoever reads our stdout, when the guest is off

struct SocketPair {
    UniqueFd ours;
    UniqueFd theirs;
};

SocketPair make_socket_pair() {
    std::array<int, 2> ends;
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
        throw Failure("make a socket pair: " + std::generic_category().message(errno));
    return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

/// Collects a child's stderr and keeps its end: the words for an error message.
class LastWords {
  public:
    explicit LastWords(const asio::any_io_executor& executor) : pipe_(executor) {
        std::array<int, 2> ends;
        if (::pipe2(ends.data(), O_CLOEXEC) != 0)
            throw Failure("make a pipe: " + std::generic_category().message(errno));
        pipe_.assign(ends[0]);
        write_end_.reset(ends[1]);
    }
    [[nodiscard]] int write_end() const noexcept { return write_end_.get(); }
    void close_write_end() { write_end_.reset(); }

    awaitable<void> collect(Report debug) {
        std::array<char, 1024> buffer;
        for (;;) {
            const auto [error, size] =
                co_await pipe_.async_read_some(asio::buffer(buffer), no_throw);
            if (error) co_return;
            const std::string_view bytes{buffer.data(), size};
            lines_.feed(bytes);
            debug(std::string{bytes.substr(0, bytes.find_last_not_of('\n') + 1)});
        }
    }
    /// The last line, or `otherwise` when it said nothing.
    [[nodiscard]] std::string text_or(const std::string& otherwise) const {
        if (!lines_.open().empty()) return lines_.open();
        return lines_.ended().empty() ? otherwise : lines_.ended();
    }

  private:
    asio::posix::stream_descriptor pipe_;
    UniqueFd write_end_;
    LastLine lines_;
};

bool is_ignored(int number) {
    struct sigaction action {};
    return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

/// True for as long as it lives.
class Flag {
  public:
    explicit Flag(bool& flag) : flag_(flag) { flag_ = true; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    ~Flag() { flag_ = false; }

  private:
    bool& flag_;
};

struct Process {
    explicit Process(const asio::any_io_executor& executor) : words(executor) {}
    std::optional<Child> child;
    LastWords words;
};

class Supervisor {
  public:
    Supervisor(PreparedRun run, Timings& timings, const Reports& reports)
        : run_(std::move(run)), timings_(timings), debug_(reports.debug), note_(reports.note) {}

    RunResult operator()() {
        set_up();
        asio::co_spawn(context_, live(), [this](std::exception_ptr failure) {
            if (failure && !failure_) failure_ = failure;
            context_.stop();
        });
        context_.run();
        if (failure_) std::rethrow_exception(failure_);
        return std::move(result_);
    }

    /// When the VM's end began.
    [[nodiscard]] Clock::time_point ended_at() const noexcept { return ended_at_; }

  private:
    // --- set-up: nothing is waited for ------------------------------------------------------

    void set_up() {
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT})
            if (!is_ignored(number)) signals_.add(number);
        const BlockedSignals blocked;  // no call of the set-up is to be interrupted
        directory_.emplace(run_.directories.run, run_.plan.name);
        if (run_.plan.network) {
            const auto start = Clock::now();
            Clock::time_point ready;
            network_.emplace(*run_.plan.network, std::move(run_.claims), run_.host,
                             run_.directories.run / "forwarding", [&] { ready = Clock::now(); });
            timings_.add("namespace", start, ready);
            timings_.add("network", ready, Clock::now());
            const auto& uplink = run_.plan.network->uplink;
            debug_(uplink ? "network is up, host address " + uplink->inner_address.to_string()
                          : "network is up");
        }
        UniqueFd overlay;
        if (run_.image && !run_.options.persist)
            timings_.measure("overlay", [&] {
                make_private_directory(run_.directories.cache);
                overlay = make_overlay(run_.directories.cache, run_.image->facts.virtual_size);
            });
        timings_.measure("qemu-spawn", [&] { spawn_qemu(std::move(overlay)); });
        if (network_) spawn_dnsmasq();
    }

    void spawn_qemu(UniqueFd overlay) {
        const QemuFds numbers;
        auto qmp = make_socket_pair();
        auto console = make_socket_pair();
        auto agent = make_socket_pair();
        auto firmware = make_socket_pair();
        SpawnSpec spec;
        spec.argv = qemu_command(run_.plan.qemu, numbers);
        spec.inherit = {{qmp.theirs.get(), numbers.qmp},
                        {console.theirs.get(), numbers.console},
                        {agent.theirs.get(), numbers.agent},
                        {firmware.theirs.get(), numbers.firmware}};
        if (run_.image) spec.inherit.push_back({run_.image->fd.get(), numbers.base});
        if (overlay) spec.inherit.push_back({overlay.get(), numbers.overlay});
        // After this function QEMU is the only holder of TAP and overlay: its end is theirs.
        std::vector<UniqueFd> devices;
        if (network_) devices = network_->take_tap();
        if (network_ && run_.plan.qemu.nic->vhost)
            for (auto& fd : network_->take_vhost()) devices.push_back(std::move(fd));
        for (std::size_t i = 0; i < devices.size(); ++i)
            spec.inherit.push_back({devices[i].get(), numbers.first_tap + static_cast<int>(i)});
        spec.stderr_fd = qemu_.words.write_end();
        debug_(shell_text(spec.argv));
        qemu_.child = Child::spawn(spec);
        qemu_.words.close_write_end();
        monitor_.emplace(context_.get_executor(), qmp.ours.release());
        agent_.emplace(context_.get_executor(), agent.ours.release(), qmp::Dialect::guest_agent,
                       agent_line_limit);
        console_socket_ = std::move(console.ours);
        firmware_.assign(asio::local::stream_protocol{}, firmware.ours.release());
    }

    void spawn_dnsmasq() {
        SpawnSpec spec;
        spec.argv = netns::dnsmasq_command(*run_.plan.network);
        spec.network_namespace = network_->space().fd();
        spec.stderr_fd = dnsmasq_.words.write_end();
        dnsmasq_.child = Child::spawn(spec);
        dnsmasq_.words.close_write_end();
        if (auto udp = network_->take_dns_udp())
            relay_.emplace(context_.get_executor(), std::move(udp), network_->take_dns_tcp());
    }

    // --- life ---------------------------------------------------------------------------------

    awaitable<void> live() {
        spawn(qemu_.words.collect(debug_));
        if (dnsmasq_.child) spawn(dnsmasq_.words.collect(debug_));
        spawn(watch_signals());
        if (run_.options.timeout) spawn(watch_timeout(*run_.options.timeout));
        spawn(watch_qemu());
        spawn(start_cpus());
        if (!over_) co_await ended_.async_wait(no_throw);
        co_await take_down();
    }

    void spawn(awaitable<void> work) {
        asio::co_spawn(context_, std::move(work), [this](std::exception_ptr failure) {
            if (failure && !failure_) failure_ = failure, end(status::failed, {});
        });
    }

    void open_console() {
        Console::Handlers handlers;
        handlers.panicked = [this] { panicked(); };
        handlers.stdout_gone = [this] {
            if (!powering_down_) end(status::signalled + SIGPIPE, {});
        };
        handlers.stop = [this](bool now) {
            if (now)
                end(status::ok, {});
            else
                ask_to_power_down();
        };
        console_.emplace(context_.get_executor(), std::move(console_socket_),
                         directory_->path() / "console.log", std::move(handlers));
    }

    awaitable<void> start_cpus() {
        const auto spawned = Clock::now();
        try {
            co_await monitor_->handshake(start_timeout);
            timings_.add("qmp-ready", spawned, Clock::now());
            const auto ready = Clock::now();
            co_await monitor_->execute("cont", {}, command_timeout);
            timings_.add("running", ready, Clock::now());
        } catch (const std::system_error&) {
            if (monitor_->closed()) co_return;  // watch_qemu() says why
            throw;
        }
        if (over_) co_return;
        running_ = Clock::now();
        debug_("CPUs run");
        if (dnsmasq_.child) spawn(watch_dnsmasq());
        spawn(watch_firmware());
        open_console();
        spawn(show_console());
        spawn(console_->pump_input());
    }

    awaitable<void> show_console() {
        co_await console_->pump_output();
        shown_ = true;
        drained_.cancel();
    }

    [[nodiscard]] bool is_running() const { return running_ != Clock::time_point{}; }

    static awaitable<void> delay(Clock::duration duration) {
        asio::steady_timer timer{co_await asio::this_coro::executor, duration};
        co_await timer.async_wait(asio::use_awaitable);
    }

    /// The first cause wins; live() goes on to take the VM down.
    void end(int exit_status, std::string message) {
        if (over_) return;
        over_ = true;
        result_ = {exit_status, std::move(message)};
        ended_at_ = Clock::now();
        ended_.cancel();
    }

    // --- watchers -----------------------------------------------------------------------------

    /// QMP until its end, which is QEMU's.
    awaitable<void> watch_qemu() {
        while (const auto event = co_await monitor_->next_event()) {
            debug_("event " + event->name);
            if (event->name == "SHUTDOWN") guest_is_off(*event);
            if (event->name == "GUEST_PANICKED") panicked();
            if (event->name == "VSERPORT_CHANGE") port_changed(*event);
        }
        const auto gone = co_await (qemu_.child->wait() || delay(grace()));
        const auto how = gone.index() == 0 ? std::get<0>(gone).describe() : "no answer";
        co_await asio::post(context_, asio::use_awaitable);  // the last of its stderr
        qemu_ended(qemu_.words.text_or(how));
        qemu_gone_ = true;
        gone_.cancel();
    }

    /// Without an event before it, QEMU's end is a failure: of its start, or of the guest.
    void qemu_ended(std::string words) {
        constexpr std::string_view prefix = "qemu-system-x86_64: ";
        if (words.starts_with(prefix)) words.erase(0, prefix.size());
        if (is_running())
            end(status::guest_died, "QEMU died: " + words);
        else
            end(status::failed, "start QEMU: " + words);
    }

    void guest_is_off(const qmp::Event& event) {
        const auto* reason = event.data.if_contains("reason");
        debug_("guest is off: " + (reason ? boost::json::serialize(*reason) : "?"));
        // "host-signal" is a QEMU that somebody ended with SIGTERM.
        if (reason != nullptr && *reason == "host-signal")
            end(status::guest_died, "QEMU was ended by a signal");
        end(signal_ != 0 ? status::signalled + signal_ : status::ok, {});
    }

    /// Why, is on the console, and perhaps not read yet: take_down() adds it.
    void panicked() {
        panicked_ = panicked_ || !over_;
        end(status::guest_died, {});
    }

    void port_changed(const qmp::Event& event) {
        const auto* id = event.data.if_contains("id");
        const auto* open = event.data.if_contains("open");
        if (id == nullptr || open == nullptr || *id != agent_port || *open != true) return;
        if (!greeting_agent_) spawn(greet_agent());
    }

    /// The agent is a guest's program: whatever goes wrong with it is no failure of ours.
    awaitable<void> greet_agent() {
        const Flag greeting{greeting_agent_};
        try {
            co_await agent_->handshake(command_timeout);
        } catch (const std::system_error& error) {
            debug_(std::string{"guest agent: "} + error.what());
            co_return;
        }
        if (!agent_ready_) timings_.add("guest-ready", running_, Clock::now());
        debug_("guest agent answers");
        agent_ready_ = true;
        co_await resize_console();
    }

    /// A serial line has no word for its size; the guest's stty is told through the agent.
    awaitable<void> resize_console() {
        if (!agent_ready_ || !console_ || !console_->on_terminal()) co_return;
        const auto [rows, columns] = RawTerminal::size();
        if (rows == 0 || columns == 0) co_return;
        try {
            const boost::json::array words{
                "-F", "/dev/ttyS0", "rows", std::to_string(rows), "cols", std::to_string(columns)};
            boost::json::object arguments{{"path", "stty"}, {"arg", words}};
            co_await agent_->execute("guest-exec", std::move(arguments), command_timeout);
        } catch (const std::exception& error) {
            debug_(std::string{"resize the console: "} + error.what());
        }
    }

    awaitable<void> watch_firmware() {
        LastLine lines;
        std::array<char, 4096> buffer;
        for (;;) {
            const auto [error, size] =
                co_await firmware_.async_read_some(asio::buffer(buffer), no_throw);
            if (error) co_return;
            lines.feed({buffer.data(), size});
            if (!is_nothing_to_boot(lines.open()) && !is_nothing_to_boot(lines.ended())) continue;
            const auto& image = run_.options.image;
            end(status::failed, fmt::format("boot '{}': the firmware found no boot loader on it",
                                            image ? image->string() : run_.plan.name));
            co_return;
        }
    }

    awaitable<void> watch_dnsmasq() {
        const auto how = co_await dnsmasq_.child->wait();
        dnsmasq_.child.reset();
        co_await asio::post(context_, asio::use_awaitable);  // the last of its stderr
        end(status::guest_died, "dnsmasq died: " + dnsmasq_.words.text_or(how.describe()));
    }

    awaitable<void> watch_signals() {
        for (;;) {
            const int number = co_await signals_.async_wait(asio::use_awaitable);
            if (number == SIGCONT && console_) console_->resume();
            if (number == SIGWINCH || number == SIGCONT)
                spawn(resize_console());
            else
                handle(number);
        }
    }

    /// The first signal asks the guest, the second does not; nor is there one to ask before it
    /// runs.
    void handle(int number) {
        if (over_) return hurry();
        const bool ask = signal_ == 0 && is_running();
        if (signal_ == 0) signal_ = number;
        if (!ask) return end(status::signalled + signal_, {});
        note_("asking the guest to power down; a second signal ends it at once");
        ask_to_power_down();
    }

    /// Cuts short whatever take_down() waits for.
    void hurry() {
        qemu_.child->signal(SIGKILL);
        drained_.cancel();
    }

    awaitable<void> watch_timeout(std::chrono::milliseconds timeout) {
        asio::steady_timer timer{context_, timings_.exec() + timeout};
        co_await timer.async_wait(asio::use_awaitable);
        const auto last = console_ ? console_->last_line() : std::string{};
        end(status::timed_out,
            fmt::format("--timeout: the guest still ran after {} s{}", timeout / 1.0s,
                        last.empty() ? "" : "; its last words: " + last));
    }

    /// ACPI's power button; a guest that does not heed it in time is ended.
    void ask_to_power_down() {
        if (powering_down_) return;
        powering_down_ = true;
        spawn(power_down());
    }

    awaitable<void> power_down() {
        debug_("asking the guest to power down");
        try {
            co_await monitor_->execute("system_powerdown", {}, command_timeout);
        } catch (const std::exception& error) {
            debug_(error.what());
        }
        co_await delay(powerdown_grace);
        end(signal_ != 0 ? status::signalled + signal_ : status::ok,
            fmt::format("the guest did not power down within {} s and was ended",
                        powerdown_grace / 1s));
    }

    // --- teardown -----------------------------------------------------------------------------

    /// What takes time, at the same time; the destructors do the rest. Children that are waited for
    /// by a watcher are not taken from under it.
    awaitable<void> take_down() {
        debug_("taking down");
        if (run_.options.persist) {
            asio::co_spawn(context_, quit(), asio::detached);
            co_await asio::post(context_, asio::use_awaitable);  // sends it
        } else {
            // Nothing of a throw-away guest is worth QEMU's 20 ms of good manners.
            qemu_.child->signal(SIGKILL);
        }
        relay_.reset();
        if (dnsmasq_.child) dnsmasq_.child->signal(SIGKILL);
        // What the host can see of the network goes while QEMU is on its way out.
        if (network_) {
            const BlockedSignals blocked;  // no call of it is to be interrupted
            network_->detach();
        }
        if (!qemu_gone_) {
            gone_.expires_after(grace());
            co_await gone_.async_wait(no_throw);
        }
        // What the guest printed last is still on its way to whoever reads our stdout.
        if (console_ && !shown_) {
            drained_.expires_after(drain_grace);
            co_await drained_.async_wait(no_throw);
        }
        if (panicked_) {
            const auto why = console_ ? console_->panic_text() : std::string{};
            result_.message = "the guest panicked" + (why.empty() ? "" : ": " + why);
        }
        if (console_) console_->release_terminal();
    }

    [[nodiscard]] Clock::duration grace() const {
        return run_.options.persist ? Clock::duration{write_grace} : Clock::duration{exit_grace};
    }

    /// Lets QEMU write to the image what it still holds.
    awaitable<void> quit() {
        try {
            co_await monitor_->execute("quit", {}, command_timeout);
        } catch (const std::exception&) {
            // "quit" may be carried out before it is answered.
            if (!monitor_->closed())
                qemu_.child->signal(SIGKILL);  // nothing happens where it is gone already
        }
    }

    static constexpr std::size_t agent_line_limit = 1024 * 1024;

    PreparedRun run_;
    Timings& timings_;
    Report debug_;
    Report note_;
    asio::io_context context_{1};
    // From the start, so that no signal ends us with a setting of the host changed.
    asio::signal_set signals_{context_};

    std::optional<VmDirectory> directory_;
    std::optional<netns::Network> network_;
    Process qemu_{context_.get_executor()};
    Process dnsmasq_{context_.get_executor()};
    std::optional<netns::DnsRelay> relay_;
    std::optional<qmp::Client> monitor_;
    std::optional<qmp::Client> agent_;
    UniqueFd console_socket_;
    asio::local::stream_protocol::socket firmware_{context_};
    std::optional<Console> console_;

    Clock::time_point running_;
    Clock::time_point ended_at_;
    asio::steady_timer ended_{context_, Clock::time_point::max()};  ///< cancelled by end()
    asio::steady_timer gone_{context_, Clock::time_point::max()};   ///< cancelled when QEMU is gone
    asio::steady_timer drained_{context_, Clock::time_point::max()};  ///< cancelled when shown_
    bool over_ = false;
    bool shown_ = false;  ///< all that the guest printed
    bool panicked_ = false;
    bool qemu_gone_ = false;
    bool greeting_agent_ = false;
    bool agent_ready_ = false;
    bool powering_down_ = false;
    int signal_ = 0;
    RunResult result_;
    std::exception_ptr failure_;
};

}  // namespace

RunResult supervise(PreparedRun run, Timings& timings, const Reports& reports) {
    auto supervisor = std::make_unique<Supervisor>(std::move(run), timings, reports);
    auto result = (*supervisor)();
    const auto ended = supervisor->ended_at();
    {
        // Asio gives the signals back to their default, and a third Ctrl-C would change the exit
        // status of what is over already.
        const BlockedSignals blocked;
        supervisor.reset();
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) ::signal(number, SIG_IGN);
    }
    timings.add("teardown", ended, Clock::now());
    return result;
}

}  // namespace qvm
