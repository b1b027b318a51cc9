// The life of one VM, as one io_context on one thread:
//
//   set-up      namespace and network (or a place in a group's), overlay, QEMU (stopped), dnsmasq
//               beside it
//   watching    QMP events until QEMU is gone; the console; dnsmasq; signals; the time-out; the
//               control socket's clients; the group's leader
//   teardown    begins when the guest is off or when one of the watchers ends the VM
//
// The first cause of an end is the one that is reported.

#include "launcher/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

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
#include <set>
#include <system_error>

#include "launcher/awaken.h"
#include "launcher/console.h"
#include "launcher/control.h"
#include "launcher/events.h"
#include "launcher/exec_service.h"
#include "launcher/failure.h"
#include "launcher/firewall.h"
#include "launcher/flag.h"
#include "launcher/granted_file.h"
#include "launcher/guest_ports.h"
#include "launcher/guest_process.h"
#include "launcher/guest_script.h"
#include "launcher/host.h"
#include "launcher/json_text.h"
#include "launcher/machine.h"
#include "launcher/machine_files.h"
#include "launcher/memory_file.h"
#include "launcher/migration.h"
#include "launcher/name_service.h"
#include "launcher/process.h"
#include "launcher/publish.h"
#include "launcher/readiness.h"
#include "launcher/step.h"
#include "launcher/tpm.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_state.h"
#include "launcher/volumes.h"
#include "netns/host_watch.h"
#include "netns/network.h"
#include "qmp/client.h"
#include "qmp/server.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;
using namespace asio::experimental::awaitable_operators;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto start_timeout = 60s;        // of QEMU to its greeting, on a host that is very busy
constexpr auto command_timeout = 10s;      // of one QMP command
constexpr auto boot_time = 1min;           // that a guest takes until its agent answers
constexpr auto boot_time_tcg = 5min;       // the same without KVM
constexpr auto silent_patience = 3s;       // of a user, before being told what is waited for
constexpr auto latecomers_patience = 10s;  // who comes when the guest has had time to boot
constexpr Clock::duration forever = 24h * 365;
constexpr auto foreign_timeout = 24h;  // of one that a client sent, and may wait for
constexpr auto powerdown_grace = 10s;  // docker's, too
constexpr auto button_pause = 2s;      // a guest that boots has not heard it the first time
constexpr auto echo_time = 100ms;      // a user's second Ctrl-C takes longer
constexpr auto awaken_pause = 20ms;    // between two looks whether that is over
constexpr auto farewell = 1s;          // of a client to take its last answers
// A probe that nothing is heard of: the kernel is through with it before it is sent, but for a host
// that is very busy, or where it has to ask for a MAC address once more. Later on the guest waits.
constexpr auto first_probe_patience = 2000ms;
constexpr auto probe_patience = 300ms;
constexpr auto trouble_pause = 1s;  // in which what is wrong with the network may pass
constexpr auto exit_grace = 3s;     // of a killed QEMU, to be gone
constexpr auto write_grace = 5min;  // of one that still writes to the user's image
constexpr auto drain_grace = 10s;   // of whoever reads our stdout, when the guest is off

/// Of an id's hexadecimal digits.
std::uint32_t number_of(const std::string& id) {
    return static_cast<std::uint32_t>(std::stoul(id, nullptr, 16));
}

bool is_ignored(int number) {
    struct sigaction action {};
    return ::sigaction(number, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

class Supervisor final : public Controlled {
  public:
    Supervisor(PreparedRun run, Timings& timings, const Reports& reports)
        : run_(std::move(run)),
          timings_(timings),
          reports_(reports),
          directory_(std::move(*run_.directory)),
          stages_(stages_of(run_.options)) {}

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
        in_step("watch signals", [this] {
            for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT})
                if (!is_ignored(number)) signals_.add(number);
        });
        // No call of the set-up is to be interrupted.
        const auto blocked = std::move(run_.blocked);
        if (run_.named) DefinitionStore{run_.directories}.forget_end(run_.plan.name);
        describe_vm();
        save_state();  // by which a group knows its member: without it there is no VM
        if (run_.seat) run_.seat->settled();
        control_listener_ = listen_on(directory_.path() / "control.sock");
        console_listener_ = listen_on(directory_.path() / "console.sock");
        exec_listener_ = listen_on(directory_.path() / "exec.sock", SOCK_SEQPACKET);
        if (run_.plan.network) {
            set_up_network();
            state_.namespace_fd = network_->space().fd();
        }
        if (run_.plan.port)
            in_step("join the bridge", [&] { port_.emplace(*run_.plan.port, run_.host); });
        auto overlay = std::move(run_.overlay);
        if (run_.image && !run_.options.persist && !overlay)
            timings_.measure("overlay", [&] {
                make_private_directory(run_.directories.cache);
                overlay = make_overlay(run_.directories.cache, run_.plan.disk_size);
            });
        timings_.measure("qemu-spawn", [&] { spawn_qemu(std::move(overlay)); });
        if (network_ && !run_.seat)
            serve_names(directory_.path(), {*run_.plan.guest}, network_->take_dns());
        if (network_) publish_ports();
    }

    void describe_vm() {
        state_.name = run_.plan.name;
        state_.pid = ::getpid();
        state_.created = run_.created;
        if (run_.snapshot) state_.snapshot_id = run_.snapshot->manifest().id;
        state_.named = run_.named;
        state_.vm = run_.options.vm;
        // detach() changes directory.
        make_absolute(state_.vm);
        state_.network = run_.plan.network;
        state_.guest = run_.plan.guest;
        state_.port = run_.plan.port;
        state_.ports = state_.vm.publish;
        for (std::size_t i = 0; i < run_.ports.size(); ++i)
            state_.ports[i].host_port = run_.ports[i].port;
        if (!run_.image) return;
        state_.disk = {{"image", state_.vm.image->string()},
                       {"format", run_.image->facts.format},
                       {"virtual_size", run_.plan.disk_size},
                       {"writes", run_.options.persist ? "image"
                                  : run_.named         ? "kept overlay"
                                                       : "overlay"}};
    }

    /// Whether what the guest sends gets out is tried: the host's firewall may be anybody's. Why it
    /// does not; empty where it does, or where we may not look; nothing where it could not be seen.
    std::optional<std::string> probe_uplink(std::chrono::milliseconds patience) {
        if (!run_.privileged) return "";
        try {
            const auto obstacle = network_->probe(patience);
            if (!obstacle) return "";
            // nft may need a while for a ruleset that is large.
            if (obstacle != last_obstacle_) {
                obstacle_text_ = describe(*obstacle, read_chain(*obstacle));
                last_obstacle_ = obstacle;
            }
            return obstacle_text_;
        } catch (const std::exception& error) {
            debug(error.what());
            return std::nullopt;
        }
    }

    void try_uplink() {
        auto& plan = *run_.plan.network;
        obstacle_ = probe_uplink(first_probe_patience).value_or("");
        if (obstacle_.empty()) return;
        const bool may_change =
            plan.mode == netns::Mode::nat && run_.options.vm.uplink == Uplink::automatic;
        if (!may_change || !find_program("pasta")) return tell_obstacle();
        reports_.note(obstacle_ + "; so pasta is the uplink");
        network_.reset();
        netns::take_pasta(plan, *run_.plan.guest);
        network_.emplace(plan, *run_.plan.guest, netns::Claims{}, run_.host,
                         run_.directories.forwarding());
        state_.network = plan;
        state_.guest = run_.plan.guest;
        save_state();
        obstacle_ = probe_uplink(first_probe_patience).value_or("");
        tell_obstacle();
    }

    void tell_obstacle() {
        if (!obstacle_.empty()) problem("network", obstacle_);
    }

    void set_up_network() {
        const auto& plan = *run_.plan.network;
        const auto start = Clock::now();
        Clock::time_point ready;
        const auto leases = run_.directories.forwarding();
        if (run_.seat && run_.seat->joined()) {
            network_.emplace(plan, *run_.plan.guest, run_.seat->take_shared(), run_.host, leases);
        } else {
            network_.emplace(plan, *run_.plan.guest, std::move(run_.claims), run_.host, leases,
                             [&] { ready = Clock::now(); });
            try_uplink();
            timings_.add("namespace", start, ready);
        }
        timings_.add("network", std::max(start, ready), Clock::now());
        const auto& address = run_.plan.guest->host_address;
        debug(address ? "network is up, host address " + address->to_string() : "network is up");
        if (!run_.seat) return;
        group_.emplace(context_.get_executor(), std::move(*run_.seat), plan, network_->shared(),
                       Group::Handlers{.lead = [this] { lead_group(); },
                                       .changed = [this] { update_names(); },
                                       .failed = reports_.debug});
    }

    void spawn_qemu(UniqueFd overlay) {
        const QemuFds numbers;
        const std::string step = "start QEMU";
        auto qmp = make_socket_pair(step);
        auto console = make_socket_pair(step);
        auto agent = make_socket_pair(step);
        auto firmware = make_socket_pair(step);
        SpawnSpec spec;
        spec.argv = qemu_command(run_.plan.qemu, numbers);
        spec.inherit = {{qmp.theirs.get(), numbers.qmp},
                        {console.theirs.get(), numbers.console},
                        {agent.theirs.get(), numbers.agent},
                        {firmware.theirs.get(), numbers.firmware}};
        for (std::size_t i = 0; i < (run_.plan.qemu.ready_ports ? stream_names.size() : 0); ++i) {
            ready_streams_.push_back(make_socket_pair(step));
            spec.inherit.push_back(
                {ready_streams_.back().theirs.get(), numbers.first_stream + static_cast<int>(i)});
        }
        std::string overlay_link;  // by which it is found among QEMU's descriptors
        if (run_.image) spec.inherit.push_back({run_.image->fd.get(), numbers.base});
        if (overlay) {
            overlay_link =
                std::filesystem::read_symlink(fmt::format("/proc/self/fd/{}", overlay.get()));
            spec.inherit.push_back({overlay.get(), numbers.overlay});
        }
        // After this function QEMU is the only holder of TAP and overlay: its end is theirs.
        std::vector<UniqueFd> devices;
        for (auto& drive : run_.drives) devices.push_back(std::move(drive.fd));
        if (run_.image)
            for (auto& fd : run_.image->backing) devices.push_back(std::move(fd));
        if (run_.plan.firmware) {
            devices.push_back(std::move(run_.code));
            devices.push_back(std::move(run_.variables));
        }
        if (run_.tpm_state) devices.push_back(start_tpm());
        for (auto& socket : volumes_.start(directory_.path()))
            (run_.snapshot ? volume_sockets_ : devices).push_back(std::move(socket));
        const auto add_tap = [&](auto& owner) {
            for (auto& fd : owner->take_tap()) devices.push_back(std::move(fd));
            if (!run_.plan.qemu.nic->vhost) return;
            for (auto& fd : owner->take_vhost()) devices.push_back(std::move(fd));
        };
        if (network_) add_tap(network_);
        if (port_) add_tap(port_);
        for (std::size_t i = 0; i < devices.size(); ++i)
            spec.inherit.push_back({devices[i].get(), numbers.first_drive + static_cast<int>(i)});
        if (network_ && !run_.qemu_account) spec.network_namespace = network_->space().fd();
        debug(shell_text(spec.argv));
        if (!run_.plan.qemu.memory_file.empty()) {
            memory_.emplace(run_.plan.qemu.memory_file,
                            run_.snapshot->open(snapshot_files::memory));
            spec.granted_file = memory_->child_end();
        }
        // Where it is may be behind a link that it does not see.
        if (const auto program = find_program(spec.argv.front()))
            spec.argv.front() = std::filesystem::weakly_canonical(*program);
        spec.confinement = confinement_of_qemu(spec.argv.front());
        qemu_.start(std::move(spec));
        if (memory_) memory_->started();
        state_.qemu_pid = qemu_.child->pid();
        monitor_.emplace(context_.get_executor(), qmp.ours.release());
        migration_.emplace(context_.get_executor(), *monitor_);
        files_.emplace(run_, *migration_, state_.qemu_pid, std::move(overlay_link));
        agent_.emplace(context_.get_executor(), agent.ours.release(), qmp::Dialect::guest_agent,
                       agent_line_limit);
        console_socket_ = std::move(console.ours);
        in_step("watch QEMU's firmware", [&] {
            firmware_.assign(asio::local::stream_protocol{}, firmware.ours.get());
            (void)firmware.ours.release();
        });
    }

    /// Returns QEMU's connection.
    UniqueFd start_tpm() {
        const auto state = std::move(run_.tpm_state);
        if (!run_.confines) return tpm_.start(state.get(), std::nullopt);
        Confinement confinement;
        confinement.mount_point = directory_.path();
        confinement.root = root_of_swtpm();
        confinement.own_network = true;
        confinement.uid = throw_away_id(number_of(random_id()));
        confinement.gid = confinement.uid.value_or(0);
        if (run_.privileged) confinement.groups.emplace();
        return tpm_.start(state.get(), std::move(confinement));
    }

    /// QEMU sees the system's software and what it is given, and nothing else of the host.
    Confinement confinement_of_qemu(const std::filesystem::path& program) {
        if (run_.qemu_account) return *run_.qemu_account;
        Confinement confinement;
        if (!run_.confines) return confinement;
        confinement.mount_point = directory_.path();
        std::vector<std::filesystem::path> files;
        for (const auto& file : {run_.plan.qemu.bios, run_.plan.qemu.kernel, run_.plan.qemu.initrd})
            if (!file.empty()) files.emplace_back(file);
        std::vector<std::string> devices{"/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"};
        if (run_.plan.qemu.kvm) devices.emplace_back("/dev/kvm");
        confinement.root = root_for(program, files, devices);
        const auto mode = run_.options.vm.net_or_default().mode;
        confinement.own_network = mode == NetOption::Mode::none || mode == NetOption::Mode::bridge;
        // A user's right to /dev/kvm is of the user's own id, and of no other.
        if (run_.privileged || !run_.plan.qemu.kvm)
            confinement.uid = throw_away_id(number_of(run_.id));
        confinement.gid = confinement.uid.value_or(0);
        if (run_.privileged) confinement.groups = groups_of(devices);
        return confinement;
    }

    void publish_ports() {
        std::vector<netns::Publication> publications;
        for (std::size_t i = 0; i < run_.ports.size(); ++i)
            publications.push_back({std::move(run_.ports[i]), run_.plan.guest->address,
                                    run_.options.vm.publish[i].guest_port});
        run_.ports.clear();
        if (publications.empty()) return;
        raise_descriptor_limit();  // two for each connection
        in_step("publish the VM's ports", [&] {
            forwards_.emplace(context_.get_executor(), network_->space(), std::move(publications));
        });
    }

    // --- names --------------------------------------------------------------------------------

    void serve_names(const std::filesystem::path& directory,
                     const std::vector<netns::GuestPlan>& guests, netns::Network::DnsSockets dns) {
        std::function<void(const std::string&)> cannot;
        // A guest that runs can do without it for a while.
        if (!is_running()) cannot = [this](const std::string& why) { end(status::failed, why); };
        const KeptProcess::Handlers handlers{reports_.debug, reports_.note, std::move(cannot)};
        const auto& plan = *run_.plan.network;
        names_.emplace(context_.get_executor(), plan, network_->space(), std::move(dns), directory,
                       guests, handlers, [this](const std::string& why) {
                           if (why.empty())
                               problem_is_over("names", "names resolve in the guest again");
                           else
                               problem("names", why);
                       });
        if (!plan.uplink || plan.uplink->kind != netns::UplinkKind::pasta) return;
        constexpr int space = 3;
        SpawnSpec pasta;
        pasta.argv = netns::pasta_command(plan, space);
        pasta.inherit = {{network_->space().fd(), space}};
        pasta_.emplace(context_.get_executor(), std::move(pasta), handlers);
    }

    [[nodiscard]] std::vector<netns::GuestPlan> all_guests() const {
        auto guests = group_guests(run_.directories.run, *state_.vm.group, state_.name);
        guests.push_back(*run_.plan.guest);
        return guests;
    }

    void lead_group() {
        debug("leading group " + *state_.vm.group);
        network_->lead();
        obstacle_ = probe_uplink(probe_patience).value_or("");
        tell_obstacle();
        auto dns = network_->take_dns();
        if (run_.plan.network->uplink && !dns.udp) {
            network_->bind_dns();
            dns = network_->take_dns();
        }
        serve_names(run_.directories.groups() / *state_.vm.group, all_guests(), std::move(dns));
    }

    /// From now on others do without us, however long QEMU still takes.
    void leave_group() {
        state_.leaving = true;
        write_state();
    }

    void update_names() {
        if (names_) names_->update(all_guests());
    }

    // --- state --------------------------------------------------------------------------------

    void debug(const std::string& text) const { reports_.debug(text); }

    /// What others read of us.
    void save_state() {
        state_.timings = timings_.phases();
        write_file(directory_.path() / "state.json", serialize(to_json(state_)) + "\n");
    }

    /// A run directory that is full by now is not the guest's fault.
    void write_state() noexcept {
        try {
            save_state();
        } catch (const std::exception& error) {
            debug(error.what());
        }
    }

    void enter(const char* state) {
        if (state_.state == state) return;
        state_.state = state;
        write_state();
    }

    /// To everybody who listens: clients of the control socket, and `qvm events`.
    void tell(const std::string& event, boost::json::object data = {}) {
        debug("VM is " + event);
        if (server_) {
            auto name = "QVM_" + event;
            for (char& c : name)
                c = c == '-' ? '_' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c;
            server_->broadcast(timed_event(std::move(name), data));
        }
        announce(run_.directories, event, state_.name, std::move(data));
    }

    /// What keeps the guest from working and may pass: told once, and kept for `inspect`.
    void problem(const std::string& about, const std::string& text) {
        auto& known = state_.problems[about];
        if (known == text) return;
        known = text;
        tell_problem(about, text);
    }

    void tell_problem(const std::string& about, const std::string& text) {
        write_state();  // whoever has read the note may inspect it
        reports_.note(text);
        tell("problem", {{"about", about}, {"problem", text}});
    }

    void problem_is_over(const std::string& about, const std::string& text) {
        if (state_.problems.erase(about) == 0) return;
        write_state();
        reports_.note(text);
        tell("recovered", {{"about", about}});
    }

    [[nodiscard]] std::string problems_text() const {
        std::string text;
        for (const auto& [about, problem] : state_.problems) text += "; " + problem;
        return text;
    }

    static qmp::Event timed_event(std::string name, boost::json::object data) {
        const auto now = std::chrono::system_clock::now().time_since_epoch();
        return {.name = std::move(name),
                .data = std::move(data),
                .seconds = now / 1s,
                .microseconds = now % 1s / 1us};
    }

    // --- life ---------------------------------------------------------------------------------

    awaitable<void> live() {
        spawn(qemu_.words.collect(reports_.debug));
        if (memory_) spawn(memory_->serve(context_.get_executor()));
        if (group_) spawn(group_->mind());
        if (run_.plan.network && run_.plan.network->uplink) spawn(watch_host());
        spawn(watch_signals());
        if (run_.options.timeout) spawn(watch_timeout(*run_.options.timeout));
        spawn(watch_qemu());
        spawn(watch_firmware());
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
        handlers.line = [this](std::string_view line) { take_console_line(line); };
        handlers.stdout_failed = [this](std::error_code why) {
            if (powering_down_) return;
            if (why == std::errc::broken_pipe)
                end(status::signalled + SIGPIPE, {});
            else
                end(status::failed, "write to stdout: " + why.message());
        };
        handlers.stop = [this](bool now) {
            if (now)
                end(status::signalled + SIGKILL, {});
            else
                ask_to_power_down(powerdown_grace, status::signalled + SIGKILL);
        };
        if (reports_.detach) handlers.detach = [this] { detach(); };
        console_.emplace(context_.get_executor(), std::move(console_socket_),
                         std::move(console_listener_), directory_.path() / "console.log",
                         !run_.options.detach && !run_.options.command, std::move(handlers));
    }

    void take_console_line(std::string_view line) {
        readiness_.take_line(line);
        if (uefi_has_console_) hear_uefi(line);
    }

    /// Its screen is the console, until that is what it boots has.
    void hear_uefi(std::string_view line) {
        uefi_has_console_ = is_of_uefi(line);
        booting_ |= is_booting(line) || !uefi_has_console_;
        if (is_nothing_to_boot(line)) nothing_boots();
    }

    void nothing_boots() {
        const auto& vm = run_.options.vm;
        const auto file = vm.kernel ? vm.kernel->string() : vm.image_text();
        end(status::failed,
            fmt::format("boot '{}': the firmware {}{}", file.empty() ? run_.plan.name : file,
                        vm.kernel ? "does not take it" : "found no boot loader on it",
                        vm.secure_boot ? ": --secure-boot takes only what is signed" : ""));
    }

    void detach() {
        reports_.note(fmt::format("detached; 'qvm console {}' comes back", state_.name));
        console_->leave_stdio();
        reports_.detach();
    }

    void serve_clients() {
        ExecService::ReadyPorts ready{run_.plan.qemu.ready_ports.value_or(0),
                                      std::move(ready_streams_)};
        if (run_.snapshot) ready.shell = run_.snapshot->manifest().ready_shell;
        commands_.emplace(
            context_.get_executor(), std::move(exec_listener_), *monitor_, *agent_,
            has_stage(stages_, WaitForOption::Stage::agent) ? forever : boot_patience(),
            std::move(ready));
        qmp::Greeting greeting;
        if (monitor_->greeting()) greeting = *monitor_->greeting();
        server_.emplace(context_.get_executor(), control_listener_.release(), greeting,
                        [this](qmp::Request request) { return carry_out(*this, request); });
    }

    awaitable<void> start_cpus() {
        const auto spawned = Clock::now();
        try {
            co_await monitor_->handshake(start_timeout);
            timings_.add("qmp-ready", spawned, Clock::now());
            if (run_.snapshot) co_await restore();
            const auto ready = Clock::now();
            co_await monitor_->execute("cont", {}, start_timeout);
            timings_.add("running", ready, Clock::now());
            if (run_.options.vm.net_or_default().mode == NetOption::Mode::user)
                co_await find_forwarded_ports();
        } catch (const std::system_error&) {
            if (monitor_->closed()) co_return;  // watch_qemu() says why
            throw;
        }
        if (over_) co_return;
        running_ = booted_ = Clock::now();
        open_console();
        serve_clients();
        enter("running");
        tell("started");
        if (tells_when_ready())
            spawn(tell_waiting());
        else
            reports_.running();
        spawn(show_console());
        spawn(console_->pump_input());
        if (is_ready_at_once()) {
            begin_command_with_news();
            guest_is_ready();
        } else {
            if (must_boot()) spawn(watch_boot());
            readiness_.start(stages_);
        }
        if (agent_is_early_) spawn(greet_agent());
    }

    /// A shell waits there for the command, which takes nothing else.
    [[nodiscard]] bool is_ready_at_once() const {
        return run_.snapshot && run_.options.command && commands_->ready_shell() != 0 &&
               !run_.options.restore_hook && run_.options.wait_for.empty() &&
               run_.options.vm.volumes.empty() && !run_.options.command->terminal;
    }

    // --- snapshots ----------------------------------------------------------------------------

    /// The machine becomes the one that was saved.
    awaitable<void> restore() {
        const auto begin = Clock::now();
        try {
            co_await files_->load(memory_.has_value());
            co_await volumes_.plug_in(*monitor_, std::move(volume_sockets_));
        } catch (const std::exception& failure) {
            if (monitor_->closed()) co_return;  // watch_qemu() says why
            if (run_.options.warm == RunOptions::Warm::off) throw;
            throw Failure(failure.what(), "--warm=refresh boots it anew");
        }
        booting_ = true;  // it has
        timings_.add("restore", begin, Clock::now());
    }

    /// Once begun it is carried out, also when the client goes.
    Answer save(std::string directory) override {
        const auto refuse = [](const std::string& why) {
            throw qmp::CommandError("qvm-save", "GenericError", why);
        };
        while ((saving_ || awakens_) && !over_) {
            if (awakens_ && state_.state != "running") refuse("it is paused while it is told news");
            if (saving_)
                co_await saved_timer_.async_wait(no_throw);
            else
                co_await delay(awaken_pause);
        }
        if (restarting_) refuse("it is being restarted");
        if (called_off()) refuse("it is being stopped");
        const auto why = why_not_saved(state_.vm, run_.options.persist);
        if (!why.empty()) refuse(why);
        saving_ = true;
        spawn(save_to(std::move(directory)));
        if (saving_) co_await saved_timer_.async_wait(no_throw);
        if (!save_failure_.empty()) refuse(save_failure_);
        co_return saved_;
    }

    awaitable<void> save_to(std::filesystem::path directory) {
        save_failure_.clear();
        try {
            const auto quiet = co_await commands_->quiet(state_.state == "running");
            auto manifest = co_await files_->manifest();
            manifest.id = random_id();
            manifest.created = timestamp();
            manifest.vm = saved_options(
                state_.vm,
                saved_net(state_.vm.net_or_default(), state_.network, state_.guest, state_.port));
            manifest.ready_ports = commands_->ready_ports();
            manifest.ready_shell = commands_->ready_shell();
            const auto pause = co_await save_machine(directory);
            co_await files_->adopt(directory, manifest);
            const std::chrono::duration<double, std::milli> milliseconds = pause;
            saved_ = {{"manifest", to_json(manifest)},
                      {"pause_ms", milliseconds.count()},
                      {"agent", state_.agent || commands_->ready_shell() != 0}};
            tell("saved", {{"pause_ms", milliseconds.count()}});
        } catch (const std::exception& failure) {
            save_failure_ = over_ ? "it ended" : failure.what();
        }
        saving_ = false;
        saved_timer_.cancel();
    }

    /// The CPUs stand still for as long as it takes, which is returned. Nobody is told, since they
    /// go on at once.
    awaitable<Clock::duration> save_machine(const std::filesystem::path& directory) {
        const Flag still{stands_still_};
        const bool runs = state_.state == "running";
        const auto begin = Clock::now();
        if (runs) co_await monitor_->execute("stop", {}, command_timeout);
        std::exception_ptr failure;
        try {
            co_await files_->save(directory);
        } catch (const std::exception&) {
            failure = std::current_exception();
        }
        try {
            if (runs && !over_) co_await monitor_->execute("cont", {}, command_timeout);
        } catch (const std::exception&) {
            if (!failure) failure = std::current_exception();
        }
        if (failure) std::rethrow_exception(failure);
        co_return Clock::now() - begin;
    }

    // --- how far the guest has come -----------------------------------------------------------

    /// Whether who left the VM to itself comes back only then.
    [[nodiscard]] bool tells_when_ready() const {
        return run_.options.detach && (!run_.options.wait_for.empty() || run_.options.restore_hook);
    }

    /// For who sits before a terminal, and sees nothing else.
    awaitable<void> tell_waiting() {
        co_await delay(silent_patience);
        if (ready_ || over_ || ::isatty(STDERR_FILENO) == 0) co_return;
        reports_.note("waiting for the guest; " + readiness_.pending_text());
    }

    Readiness::Handlers readiness_handlers() {
        return {.reached =
                    [this](const WaitForOption& stage) {
                        debug("guest has reached " + to_string(stage));
                        if (stages_.size() > 1 || !run_.options.wait_for.empty())
                            timings_.add(to_string(stage), running_, Clock::now());
                    },
                .ready = [this] { guest_is_ready(); },
                .failed = [this](const std::string& why) { end(status::failed, why); }};
    }

    void guest_is_ready() {
        ready_ = Clock::now();
        timings_.add("guest-ready", running_, *ready_);
        boot_timer_.cancel();
        if (over_) return;
        if (tells_when_ready()) reports_.running();
        tell("ready");
        if (run_.options.command) spawn(run_command(*run_.options.command));
    }

    GuestPorts::Ways ways_to_guest() {
        return {.space = [this]() -> const netns::Namespace& { return guest_space(); },
                .endpoint = [this](std::uint16_t port) { return endpoint_of(port); }};
    }

    [[nodiscard]] asio::ip::tcp::endpoint endpoint_of(std::uint16_t port) const {
        const auto& guest = run_.plan.guest;
        return guest_endpoint(run_.options.vm.net_or_default().mode,
                              guest ? std::optional{guest->address} : std::nullopt, state_.ports,
                              port);
    }

    const netns::Namespace& guest_space() {
        if (network_) return network_->space();
        if (!host_space_) host_space_.emplace(netns::Namespace::current());
        return *host_space_;
    }

    // --- the guest's command ------------------------------------------------------------------

    /// Whether the guest has to come somewhere in time.
    [[nodiscard]] bool must_boot() const { return !stages_.empty(); }

    [[nodiscard]] Clock::duration boot_patience() const {
        if (run_.options.boot_timeout) return *run_.options.boot_timeout;
        return slowest_boot();
    }

    [[nodiscard]] Clock::duration slowest_boot() const {
        return run_.plan.qemu.kvm ? boot_time : boot_time_tcg;
    }

    awaitable<void> watch_boot() {
        boot_timer_.expires_at(running_ + boot_patience());
        const auto [error] = co_await boot_timer_.async_wait(no_throw);
        if (!error && !ready_) timed_out("--boot-timeout", boot_patience());
    }

    awaitable<void> run_command(const GuestCommand& command) {
        try {
            command_.emplace(context_.get_executor(), commands_->connect(), command,
                             run_.options.interactive,
                             GuestNotes{.waiting = reports_.debug, .note = reports_.note});
            const int exit_status = co_await command_->end();
            command_ended(exit_status);
        } catch (const Failure& failure) {
            end(failure.exit_status(),
                fmt::format("run '{}' in the guest: {}", command.argv.front(), failure.what()));
        }
    }

    void command_ended(int exit_status) {
        if (over_) return;
        timings_.add("command", *ready_, Clock::now());
        result_.of_command = true;
        command_status_ = exit_status;
        // What the guest's page cache holds is to get to the image.
        if (keeps_disk())
            ask_to_power_down(powerdown_grace, exit_status);
        else
            end(exit_status, {});
    }

    [[nodiscard]] bool command_runs() const { return run_.options.command && !command_status_; }

    /// Which ports QEMU's user networking has bound, where that was left to the kernel.
    awaitable<void> find_forwarded_ports() {
        auto& ports = state_.ports;
        if (std::none_of(ports.begin(), ports.end(),
                         [](auto& port) { return port.host_port == 0; }))
            co_return;
        boost::json::object arguments{{"command-line", "info usernet"}};
        const auto text = co_await monitor_->execute("human-monitor-command", std::move(arguments),
                                                     command_timeout);
        take_forwarded_ports(text.is_string() ? std::string{text.get_string()} : "", ports);
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
        result_.exit_status = exit_status;
        result_.message = std::move(message);
        ended_at_ = Clock::now();
        ended_.cancel();
    }

    // --- watchers -----------------------------------------------------------------------------

    /// QMP until its end, which is QEMU's.
    awaitable<void> watch_qemu() {
        const auto oom_kills = read_oom_kills();
        while (const auto event = co_await monitor_->next_event()) {
            debug("event " + event->name);
            if (server_) server_->broadcast(*event);
            if (event->name == "SHUTDOWN") guest_is_off(*event);
            if (event->name == "GUEST_PANICKED") panicked();
            if (event->name == "VSERPORT_CHANGE") port_changed(*event);
            if (event->name == "BLOCK_IO_ERROR") disk_failed(*event);
            if (event->name == "DEVICE_DELETED") device_deleted(*event);
            if (event->name == "RESET" && is_running()) guest_restarts();
            if (event->name == "STOP") cpus_stopped();
            if (event->name == "RESUME") cpus_run();
            if (event->name == "MIGRATION") migration_->take_status(*event);
        }
        migration_->close();
        const auto gone = co_await (qemu_.child->wait() || delay(grace()));
        auto how = gone.index() == 0 ? std::get<0>(gone).describe()
                                     : "talk to it: " + monitor_->error().message();
        const bool killed = gone.index() == 0 && std::get<0>(gone).signal == SIGKILL;
        if (killed && read_oom_kills() > oom_kills)
            how +=
                ", and the kernel's OOM killer was at work: the host, or the cgroup of this "
                "process, is short of memory";
        co_await asio::post(context_, asio::use_awaitable);  // the last of its stderr
        qemu_ended(killed ? how : qemu_.words.text_or(how));
        qemu_gone_ = true;
        gone_.cancel();
    }

    /// Without an event before it, QEMU's end is a failure: of its start, or of the guest.
    void qemu_ended(std::string words) {
        const auto prefix = std::string{machine_of(run_.plan.qemu.architecture).qemu} + ": ";
        if (words.starts_with(prefix)) words.erase(0, prefix.size());
        if (is_running()) return end(status::guest_died, "QEMU died: " + words);
        // A virtiofsd or a swtpm that is gone is why QEMU is, and says more.
        const auto what = run_.snapshot ? run_.snapshot->what() + ": " : std::string{};
        auto trouble = volumes_.trouble();
        if (trouble.empty()) trouble = tpm_.trouble();
        end(status::failed, trouble.empty() ? what + "start QEMU: " + words : trouble);
    }

    /// What the guest does with it would not come back. Of a VM that ends it is no news.
    void helper_died(const std::string& why) {
        if (!over_ && is_running()) end(status::guest_died, why);
    }

    void guest_is_off(const qmp::Event& event) {
        const auto* reason = event.data.if_contains("reason");
        debug("guest is off: " + (reason ? boost::json::serialize(*reason) : "?"));
        if (restarting_ && !powering_down_) {
            was_off_ = true;
            off_.cancel();
            return;
        }
        // "host-signal" is a QEMU that somebody ended with SIGTERM.
        if (reason != nullptr && *reason == "host-signal")
            return end(status::guest_died, "QEMU was ended by a signal");
        if (reason != nullptr && *reason == "guest-shutdown") return powered_off();
        end(exit_status(), {});
    }

    void powered_off() {
        powered_off_ = true;
        if (signal_ != 0) return end(exit_status(), {});
        if (!ready_ && must_boot())
            return end(status::guest_died,
                       "the guest powered off before it was ready: " + phase_text());
        if (command_runs())
            return end(status::guest_died, "the guest powered off while its command ran");
        end(exit_status(), {});
    }

    /// Of an end in good order.
    [[nodiscard]] int exit_status() const {
        if (command_status_) return *command_status_;
        return signal_ != 0 ? status::signalled + signal_ : status::ok;
    }

    void cpus_stopped() {
        if (over_ || stands_still_ || restarting_ || powering_down_ || !is_running()) return;
        enter("paused");
        tell("paused");
    }

    void cpus_run() {
        problem_is_over("disk", "the guest goes on");
        if (over_ || restarting_ || state_.state != "paused") return;
        enter("running");
        tell("resumed");
    }

    /// QEMU stops the CPUs for want of space; of other failures the guest knows itself (werror and
    /// rerror of qemu(1), both at their default).
    void disk_failed(const qmp::Event& event) {
        const auto* nospace = event.data.if_contains("nospace");
        if (nospace != nullptr && *nospace == true)
            return problem("disk", fmt::format("no space left for the guest's disk in '{}': the "
                                               "guest is paused; 'qvm resume {}' goes on when "
                                               "there is some",
                                               disk_directory().string(), state_.name));
        // Nobody can say when that is over, and it may come with every access.
        const auto operation = text_in(event.data, "operation");
        if (!failed_operations_.insert(operation).second) return;
        tell_problem("disk", fmt::format("the guest's disk: {} failed: {}", operation,
                                         text_in(event.data, "reason")));
    }

    /// Where what the guest writes takes space.
    [[nodiscard]] std::filesystem::path disk_directory() const {
        if (run_.options.persist) return state_.vm.image->parent_path();
        return run_.named ? DefinitionStore{run_.directories}.path(state_.name)
                          : run_.directories.cache;
    }

    /// Why, is on the console, and perhaps not read yet: take_down() adds it.
    void panicked() {
        if (over_) return;
        panicked_ = true;
        tell("panicked");
        end(status::guest_died, {});
    }

    void device_deleted(const qmp::Event& event) {
        const auto* device = event.data.if_contains("device");
        if (commands_ && device != nullptr && device->is_string())
            commands_->device_deleted(std::string{device->get_string()});
    }

    void guest_restarts() {
        booted_ = Clock::now();
        agent_->give_up();
        agent_up_.reset();
        uefi_has_console_ = run_.plan.firmware.has_value();
        ports_.guest_restarts();
        state_.agent = false;
        commands_->guest_is_gone("the guest restarted");
    }

    void port_changed(const qmp::Event& event) {
        const auto* id = event.data.if_contains("id");
        const auto* open = event.data.if_contains("open");
        if (id == nullptr || !id->is_string() || open == nullptr) return;
        // One that was saved with its agent has it at once.
        if (!commands_) {
            if (*id == agent_port) agent_is_early_ = *open == true;
        } else if (*id != agent_port) {
            commands_->port_changed(std::string{id->get_string()}, *open == true);
        } else if (*open == true) {
            agent_is_open_ = agent_has_changed_ = true;
            if (!greeting_agent_) spawn(greet_agent());
        } else {
            agent_is_open_ = false;
            agent_has_changed_ = true;
            state_.agent = false;
            commands_->agent_is_down();
            write_state();
        }
    }

    /// The agent is a guest's program: whatever goes wrong with it is no failure of ours.
    awaitable<void> greet_agent() {
        const Flag greeting{greeting_agent_};
        do {
            agent_has_changed_ = false;
            co_await greet_this_agent();
        } while (agent_has_changed_ && agent_is_open_);
    }

    /// As long as it is that one.
    awaitable<void> greet_this_agent() {
        try {
            co_await agent_->handshake(command_timeout);
        } catch (const std::system_error& error) {
            debug(std::string{"guest agent: "} + error.what());
            co_return;
        }
        if (run_.snapshot && !std::exchange(awake_, true)) co_await awaken();
        if (agent_has_changed_) co_return;
        co_await mount_volumes();
        if (agent_has_changed_) co_return;
        if (!ready_ && !must_boot()) {
            ready_ = Clock::now();
            timings_.add("guest-ready", running_, *ready_);
        }
        state_.agent = true;
        agent_up_ = Clock::now();
        commands_->agent_is_up();
        write_state();
        tell("agent-up");
        readiness_.agent_is_up();
        co_await resize_console();
    }

    /// A guest that was saved learns who it is now, and when. Without a shell it stays as it was;
    /// the hook is what its user relies on.
    awaitable<void> awaken() {
        const auto begin = Clock::now();
        if (run_.options.command && !run_.options.restore_hook && run_.options.wait_for.empty()) {
            begin_command_with_news();
            co_return;
        }
        const Flag awakening_now{awakens_};
        std::string why;
        try {
            const auto news = awakening();
            bool told = false;
            if (!run_.options.restore_hook) told = co_await commands_->tell(news);
            auto arguments = awaken_arguments(news, run_.restore_hook);
            if (!told) why = co_await run_by_agent(std::move(arguments));
        } catch (const std::exception& failure) {
            why = failure.what();
        }
        timings_.add("awaken", begin, Clock::now());
        if (why.empty()) co_return;
        if (!run_.options.restore_hook)
            debug("tell the guest what is new: " + why);
        else
            end(status::failed, fmt::format("--restore-hook in the guest: {}", why));
    }

    [[nodiscard]] Awakening awakening() const {
        return {.name = state_.name,
                .now = std::chrono::system_clock::now(),
                .random = random_id() + random_id() + random_id() + random_id(),
                .boot_id = random_uuid()};
    }

    /// A command that waits is told on its way: that saves the guest a shell, and us asking it.
    void begin_command_with_news() {
        awake_ = true;
        commands_->begin_with(awakening());
    }

    /// How a command that the agent runs has failed; empty where it has not.
    awaitable<std::string> run_by_agent(boost::json::object arguments) {
        const auto answer =
            co_await agent_->execute("guest-exec", std::move(arguments), command_timeout);
        const auto end = co_await capture_end(*agent_, answer.at("pid").to_number<int>(),
                                              [this] { return !over_; });
        if (!end || end->exit_status == 0) co_return "";
        const auto said = first_line(end->err.empty() ? end->out : end->err);
        co_return fmt::format("exit status {}{}{}", end->exit_status, said.empty() ? "" : ": ",
                              said);
    }

    /// Before others may use the agent: their commands find them.
    awaitable<void> mount_volumes() {
        try {
            co_await volumes_.mount(*agent_);
            problem_is_over("volumes", "the volumes are mounted");
        } catch (const Failure& failure) {
            if (run_.options.command) end(status::failed, failure.what());
            problem("volumes", failure.what());
        }
    }

    /// A serial line has no word for its size; the guest's stty is told through the agent.
    awaitable<void> resize_console() {
        if (!console_ || !console_->on_terminal()) co_return;
        const auto [rows, columns] = RawTerminal::size();
        co_await set_console_size(rows, columns);
    }

    awaitable<void> set_console_size(unsigned rows, unsigned columns) {
        if (!state_.agent || rows == 0 || columns == 0) co_return;
        try {
            const boost::json::array words{
                "-F",   fmt::format("/dev/{}", machine_of(run_.plan.qemu.architecture).console),
                "rows", std::to_string(rows),
                "cols", std::to_string(columns)};
            boost::json::object arguments{{"path", "stty"}, {"arg", words}};
            co_await agent_->execute("guest-exec", std::move(arguments), command_timeout);
        } catch (const std::exception& error) {
            debug(std::string{"resize the console: "} + error.what());
        }
    }

    /// Before the CPUs run: a firmware whose words nobody takes holds QEMU's lock until they are
    /// taken, and QEMU answers nobody.
    awaitable<void> watch_firmware() {
        LastLine lines;
        std::array<char, 4096> buffer;
        for (;;) {
            const auto [error, size] =
                co_await firmware_.async_read_some(asio::buffer(buffer), no_throw);
            if (error) co_return;
            lines.feed({buffer.data(), size},
                       [this](std::string_view line) { booting_ |= is_booting(line); });
            if (!is_nothing_to_boot(lines.open()) && !is_nothing_to_boot(lines.ended())) continue;
            co_return nothing_boots();
        }
    }

    awaitable<void> watch_signals() {
        for (;;) {
            const int number = co_await signals_.async_wait(asio::use_awaitable);
            if (number == SIGCONT && console_) console_->resume();
            if (number == SIGWINCH && command_) command_->resize();
            if (number == SIGWINCH || number == SIGCONT)
                spawn(resize_console());
            else
                handle(number);
        }
    }

    /// The first signal asks the guest, the second does not; nor is there one to ask before it
    /// runs.
    void handle(int number) {
        const auto now = Clock::now();
        const auto since = now - std::exchange(signalled_at_, now);
        // One to the whole process group comes twice: also from the process that stands in for us.
        if (reports_.detach && number == signal_ && since < echo_time) return;
        if (over_) return hurry();
        const bool first = signal_ == 0;
        if (first) signal_ = number;
        if (command_runs()) {
            if (!first || !command_ || !command_->signal(number))
                end(status::signalled + signal_, {});
            return;
        }
        const bool ask = first && is_running();
        if (!ask) return end(status::signalled + signal_, {});
        reports_.note("asking the guest to power down; a second signal ends it at once");
        ask_to_power_down(powerdown_grace, status::signalled + signal_);
    }

    /// Cuts short whatever take_down() waits for.
    void hurry() {
        qemu_.child->signal(SIGKILL);
        drained_.cancel();
    }

    /// What changes on the host is taken up where it can be, and told where it cannot, when that
    /// has lasted: a route may be replaced by being deleted and added.
    awaitable<void> watch_host() {
        using namespace asio::experimental::awaitable_operators;
        netns::HostWatch watch{context_.get_executor(), run_.plan.network->id, run_.privileged};
        std::optional<Clock::time_point> since =
            Clock::time_point{};  // what is so at first is told
        for (bool probed = true; !over_; probed = false) {
            const auto begin = Clock::now();
            const auto trouble = follow_host(probed);
            const auto now = Clock::now();
            // A host of very many routes or rules that change all the time gets a tenth of our
            // time.
            co_await delay(9 * (now - begin));
            if (trouble.text.empty()) {
                since.reset();
                problem_is_over("network", "the guest reaches the outside again");
                if (trouble.try_again)
                    co_await (watch.change() || delay(trouble_pause));
                else
                    co_await watch.change();
                continue;
            }
            if (!since) since = now;
            const bool lasts = now - *since >= trouble_pause;
            if (lasts) problem("network", trouble.text);
            if (lasts && !trouble.try_again)
                co_await watch.change();
            else
                co_await (watch.change() || delay(trouble_pause));
        }
    }

    struct Trouble {
        std::string text;        ///< empty where there is none
        bool try_again = false;  ///< nobody says when it is over, or what it is
    };

    /// `probed`: the uplink has been tried just now, and obstacle_ is what came of it.
    Trouble follow_host(bool probed) {
        const BlockedSignals blocked;  // no call of it is to be interrupted
        try {
            const auto trouble = network_->follow_host();
            if (!trouble.empty()) return {trouble};
            if (probed) return {obstacle_};
            // One member of a group tries it for all.
            const auto obstacle = names_ ? probe_uplink(probe_patience) : std::string{};
            if (obstacle) obstacle_ = *obstacle;
            return {obstacle_, !obstacle};
        } catch (const std::exception& error) {
            return {fmt::format("the host's network changed, and the VM's does not follow: {}",
                                error.what()),
                    true};
        }
    }

    awaitable<void> watch_timeout(std::chrono::milliseconds timeout) {
        asio::steady_timer timer{context_, timings_.exec() + timeout};
        co_await timer.async_wait(asio::use_awaitable);
        timed_out("--timeout", timeout);
    }

    void timed_out(const char* option, Clock::duration timeout) {
        const auto last = console_ && !run_.options.command ? console_->last_line() : std::string{};
        end(status::timed_out,
            fmt::format("{}: {} after {} s{}{}", option, phase_text(), timeout / 1.0s,
                        last.empty() ? "" : "; its last words: " + last, problems_text()));
    }

    /// How far the guest has come, as far as that can be seen from outside.
    [[nodiscard]] std::string phase_text() const {
        if (!must_boot()) return "the guest still ran";
        if (ready_ && command_runs()) return "phase 'command': the command still ran";
        if (ready_) return "the guest still ran";
        if (!readiness_.waits_for_agent()) return readiness_.pending_text();
        if (awakens_ && run_.options.restore_hook)
            return "phase 'restore-hook': it still ran in the guest";
        if (greeting_agent_ || (console_ && console_->shows_prompt()))
            return "phase 'agent': the guest is up, and no guest agent answered";
        return booting_ ? "phase 'kernel': the guest was still booting"
                        : "phase 'firmware': nothing was booted";
    }

    /// ACPI's power button; a guest that does not heed it in time is ended with `exit_status`.
    /// The most impatient of those who ask decides how long that is.
    void ask_to_power_down(Clock::duration grace, int exit_status) {
        const auto deadline = Clock::now() + grace;
        if (powering_down_ && deadline >= patience_) return;
        if (restarting_ && was_off_) return powered_off();  // at this moment
        grace_given_ = grace;
        patience_ = deadline;
        off_.cancel();
        if (!std::exchange(powering_down_, true)) spawn(power_down(exit_status));
    }

    awaitable<void> power_down(int exit_status) {
        debug("asking the guest to power down");
        bool paused = state_.state == "paused" || restarting_;
        enter("stopping");
        while (!over_ && Clock::now() < patience_) {
            co_await press_power_button(std::exchange(paused, false));
            off_.expires_at(std::min(patience_, Clock::now() + button_pause));
            co_await off_.async_wait(no_throw);
        }
        end(exit_status, fmt::format("the guest did not power down within {} s and was ended",
                                     grace_given_ / 1.0s));
    }

    /// A guest whose CPUs are stopped would not notice.
    awaitable<void> press_power_button(bool paused) {
        try {
            if (paused) co_await monitor_->execute("cont", {}, command_timeout);
            co_await monitor_->execute("system_powerdown", {}, command_timeout);
        } catch (const std::exception& error) {
            debug(error.what());
        }
    }

    // --- what clients of the control socket may do --------------------------------------------

    /// The end of everything that others can see; see take_down().
    awaitable<boost::json::value> until_over() {
        if (!taken_down_) co_await taken_down_timer_.async_wait(no_throw);
        co_return boost::json::object{{"exit-status", result_.exit_status},
                                      {"message", result_.message},
                                      {"how", powered_off_ ? "powered-off" : "ended"}};
    }

    Answer stop(std::chrono::milliseconds timeout) override {
        if (timeout == 0ms)
            end(status::signalled + SIGKILL, {});
        else
            ask_to_power_down(timeout, status::signalled + SIGKILL);
        return until_over();
    }

    Answer kill() override {
        if (over_)
            hurry();
        else
            end(status::signalled + SIGKILL, {});
        return until_over();
    }

    Answer wait() override { return until_over(); }

    /// Within the same QEMU: the disk, the network and its addresses stay. Once begun it is carried
    /// out, also when the client goes.
    Answer restart(std::chrono::milliseconds timeout) override {
        const auto refuse = [](const char* why) {
            throw qmp::CommandError("qvm-restart", "GenericError", why);
        };
        if (restarting_) refuse("The VM is being restarted already");
        if (saving_) refuse("The VM is being saved");
        if (powering_down_ || over_) refuse("The VM is being stopped");
        restarting_ = true;
        spawn(restart_guest(timeout));
        if (restarting_) co_await restarted_.async_wait(no_throw);
        if (over_ || powering_down_) refuse("The VM was stopped");
        if (!restart_failure_.empty()) refuse(restart_failure_.c_str());
        co_return boost::json::object{{"how", was_off_ ? "powered-off" : "reset"}};
    }

    awaitable<void> restart_guest(std::chrono::milliseconds timeout) {
        restart_failure_.clear();
        was_off_ = false;
        const bool paused = state_.state == "paused";
        enter("restarting");
        try {
            co_await power_off_and_reset(timeout, paused);
            if (!called_off()) co_await boot_again();
        } catch (const std::exception& error) {
            // Of a QEMU that is gone, watch_qemu() says why.
            restart_failure_ = error.what();
            if (!called_off() && was_off_) powered_off();
            if (!called_off()) enter("running");
        }
        restarting_ = false;
        restarted_.cancel();
    }

    /// By somebody who wants the VM to stop.
    [[nodiscard]] bool called_off() const { return powering_down_ || over_; }

    awaitable<void> power_off_and_reset(std::chrono::milliseconds timeout, bool paused) {
        co_await set_shutdown_action("pause");
        const auto deadline = Clock::now() + timeout;
        while (!was_off_ && !called_off() && Clock::now() < deadline) {
            co_await press_power_button(std::exchange(paused, false));
            if (was_off_ || called_off()) break;
            off_.expires_at(std::min(deadline, Clock::now() + button_pause));
            co_await off_.async_wait(no_throw);
        }
        if (!called_off()) co_await monitor_->execute("system_reset", {}, command_timeout);
        co_await set_shutdown_action("poweroff");
    }

    awaitable<void> boot_again() {
        state_.agent = false;
        co_await monitor_->execute("cont", {}, command_timeout);
        enter("running");
        tell("restarted");
    }

    awaitable<boost::json::value> set_shutdown_action(const char* action) {
        boost::json::object arguments{{"shutdown", action}};
        return monitor_->execute("set-action", std::move(arguments), command_timeout);
    }

    Answer wait_for(std::string text) override {
        WaitForOption stage;
        try {
            stage = parse_wait_for(text);
        } catch (const Failure& failure) {
            throw qmp::CommandError("qvm-wait-for", "GenericError",
                                    "'" + text + "' " + failure.what());
        }
        using Stage = WaitForOption::Stage;
        if (stage.stage != Stage::ssh && stage.stage != Stage::tcp)
            throw qmp::CommandError("qvm-wait-for", "GenericError",
                                    "'" + text + "' cannot be waited for by now");
        // A guest whose agent answers is about to have booted.
        const auto booted = agent_up_ ? *agent_up_ + boot_time : booted_ + slowest_boot();
        asio::steady_timer late{context_, std::max(Clock::now() + latecomers_patience, booted)};
        const auto reached = co_await (ports_.until_open(stage) || late.async_wait(no_throw));
        const auto endpoint = endpoint_of(stage.stage == Stage::ssh ? ssh_port : stage.port);
        boost::json::object answer{{"problem", nullptr},
                                   {"address", endpoint.address().to_string()},
                                   {"port", endpoint.port()}};
        if (reached.index() != 0)
            answer["problem"] = fmt::format("phase '{}': {}", text, ports_.problem(stage));
        co_return answer;
    }

    boost::json::value inspect() override {
        state_.timings = timings_.phases();
        return to_json(state_);
    }

    std::size_t console_clients() override { return console_ ? console_->attached() : 0; }

    Answer resize_console(unsigned rows, unsigned columns) override {
        co_await set_console_size(rows, columns);
        co_return boost::json::object{};
    }

    Answer pass_through(std::string command, boost::json::object arguments) override {
        while (stands_still_ && !over_) co_await saved_timer_.async_wait(no_throw);
        try {
            co_return co_await monitor_->execute(command, std::move(arguments), foreign_timeout);
        } catch (const std::system_error& error) {
            // QEMU may be gone before it has answered this one.
            if (command == "quit" && monitor_->closed()) co_return boost::json::object{};
            throw qmp::CommandError(command, "GenericError", error.code().message());
        }
    }

    // --- teardown -----------------------------------------------------------------------------

    /// What takes time, at the same time; the destructors do the rest. Children that are waited for
    /// by a watcher are not taken from under it.
    awaitable<void> take_down() {
        debug("taking down");
        enter("stopping");
        if (keeps_disk()) {
            asio::co_spawn(context_, quit(), asio::detached);
            co_await asio::post(context_, asio::use_awaitable);  // sends it
        } else {
            // Nothing of a throw-away guest is worth QEMU's 20 ms of good manners.
            qemu_.child->signal(SIGKILL);
        }
        if (names_) names_->stop();
        if (pasta_) pasta_->stop();
        forwards_.reset();
        if (commands_) commands_->guest_is_gone("the VM ended");
        // What the host can see of the network goes while QEMU is on its way out.
        if (network_) {
            const BlockedSignals blocked;  // no call of it is to be interrupted
            if (group_ && group_->leave([this] { leave_group(); })) network_->leave_to_others();
            network_->detach();
        }
        port_.reset();
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
        if (console_) console_->leave_stdio();
        if (console_ && run_.options.command && !result_.of_command)
            result_.last_words = console_->last_lines();
        result_.vm = to_json(state_);
        keep_end();
        taken_down_ = true;
        taken_down_timer_.cancel();
        if (server_) co_await server_->finish(farewell);
    }

    void keep_end() {
        tell("stopped", {{"exit_status", result_.exit_status}, {"message", result_.message}});
        if (!run_.named) return;
        DefinitionStore{run_.directories}.keep_end(
            state_.name, {result_.exit_status, result_.message, timestamp()}, directory_.path());
    }

    /// Whether what the guest wrote last is worth to wait for.
    [[nodiscard]] bool keeps_disk() const {
        const auto& drives = run_.plan.qemu.drives;
        return run_.options.persist || run_.named ||
               std::any_of(drives.begin(), drives.end(),
                           [](const auto& drive) { return !drive.read_only; });
    }

    [[nodiscard]] Clock::duration grace() const {
        return keeps_disk() ? Clock::duration{write_grace} : Clock::duration{exit_grace};
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

    /// Twice the 16 MiB that the agent keeps of a command without ports, in base64.
    static constexpr std::size_t agent_line_limit = 48 * 1024 * 1024;

    PreparedRun run_;
    Timings& timings_;
    const Reports& reports_;
    asio::io_context context_{1};
    // From the start, so that no signal ends us with a setting of the host changed.
    asio::signal_set signals_{context_};

    std::optional<Group> group_;  ///< its directory goes with the last member's
    VmDirectory directory_;       ///< its end is what others take for ours
    VmState state_;
    std::optional<netns::Network> network_;
    std::optional<netns::BridgePort> port_;
    std::optional<netns::PortForwards> forwards_;
    std::optional<NameService> names_;
    std::optional<KeptProcess> pasta_;              ///< the uplink, where it is that
    std::string obstacle_;                          ///< why its last probe did not get through
    std::optional<netns::Obstacle> last_obstacle_;  ///< that was told, and how
    std::string obstacle_text_;
    Process qemu_{context_.get_executor()};
    std::optional<qmp::Client> monitor_;
    std::optional<qmp::Client> agent_;
    std::optional<Migration> migration_;
    std::optional<MachineFiles> files_;
    std::optional<GrantedFile> memory_;      ///< of a snapshot: what the guest's is at first
    std::vector<SocketPair> ready_streams_;  ///< of the first command, until commands_ has them
    std::vector<UniqueFd> volume_sockets_;   ///< of a clone, until they are plugged in
    UniqueFd control_listener_;
    UniqueFd console_listener_;
    UniqueFd exec_listener_;
    std::optional<qmp::Server> server_;
    std::optional<ExecService> commands_;
    std::optional<GuestProcess> command_;  ///< of run_.options.command
    UniqueFd console_socket_;
    asio::local::stream_protocol::socket firmware_{context_};
    std::optional<Console> console_;

    Volumes volumes_{context_.get_executor(), run_.plan.volumes, reports_.debug,
                     [this](const std::string& why) { helper_died(why); }};
    Tpm tpm_{context_.get_executor(), reports_.debug,
             [this](const std::string& why) { helper_died(why); }};
    const std::vector<WaitForOption> stages_;
    GuestPorts ports_{context_.get_executor(), ways_to_guest()};
    Readiness readiness_{context_.get_executor(), ports_, [this] { return commands_->connect(); },
                         readiness_handlers()};
    std::optional<netns::Namespace> host_space_;  ///< where the guest has QEMU's user networking
    Clock::time_point running_;
    Clock::time_point booted_;                   ///< when it last began to
    std::optional<Clock::time_point> agent_up_;  ///< since then
    std::optional<Clock::time_point> ready_;     ///< all stages_ were reached, or the agent was
    std::optional<int> command_status_;
    bool booting_ = false;  ///< the firmware is done
    bool uefi_has_console_ = run_.plan.firmware && !run_.snapshot;
    asio::steady_timer boot_timer_{context_};
    Clock::time_point ended_at_;
    asio::steady_timer ended_{context_, Clock::time_point::max()};  ///< cancelled by end()
    asio::steady_timer gone_{context_, Clock::time_point::max()};   ///< cancelled when QEMU is gone
    asio::steady_timer drained_{context_, Clock::time_point::max()};  ///< cancelled when shown_
    Clock::time_point patience_;  ///< of those who asked the guest to power down, until then
    Clock::duration grace_given_{};
    asio::steady_timer off_{context_};  ///< cancelled when the guest is off, or asked otherwise
    asio::steady_timer restarted_{context_, Clock::time_point::max()};  ///< cancelled after one
    asio::steady_timer taken_down_timer_{context_, Clock::time_point::max()};
    bool over_ = false;
    bool shown_ = false;  ///< all that the guest printed
    bool panicked_ = false;
    bool powered_off_ = false;  ///< by itself, or since it was asked to
    bool qemu_gone_ = false;
    bool taken_down_ = false;
    bool greeting_agent_ = false;
    bool agent_is_open_ = false;               ///< it has its port open
    bool agent_has_changed_ = false;           ///< and has opened or closed it since it was greeted
    bool awakens_ = false;                     ///< the guest is told what is new
    bool awake_ = false;                       ///< the guest of a snapshot knows what is new
    bool agent_is_early_ = false;              ///< it was there before the CPUs were known to run
    std::set<std::string> failed_operations_;  ///< of the guest's disk, that were told
    bool powering_down_ = false;
    bool restarting_ = false;
    bool was_off_ = false;  ///< in the last restart, before it was reset
    std::string restart_failure_;
    bool saving_ = false;
    bool stands_still_ = false;  ///< for as long as it is saved
    std::string save_failure_;
    boost::json::object saved_;                                           ///< what is answered
    asio::steady_timer saved_timer_{context_, Clock::time_point::max()};  ///< cancelled after one
    int signal_ = 0;
    Clock::time_point signalled_at_;
    RunResult result_;
    std::exception_ptr failure_;
};

}  // namespace

RunResult supervise(PreparedRun run, Timings& timings, const Reports& reports) {
    auto supervisor = in_step(fmt::format("prepare for VM '{}'", run.plan.name), [&] {
        return std::make_unique<Supervisor>(std::move(run), timings, reports);
    });
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
