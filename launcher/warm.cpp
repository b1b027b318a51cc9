#include "launcher/warm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/serialize.hpp>
#include <thread>

#include "images/hash.h"
#include "launcher/control_client.h"
#include "launcher/find_image.h"
#include "launcher/guest_script.h"
#include "launcher/host.h"
#include "launcher/kvm.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/ssh_key.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_plan.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;
using namespace asio::experimental::awaitable_operators;

namespace {

constexpr auto settle_time = 5min;    // of a guest whose agent answers, until it has booted
constexpr auto longest_life = 30min;  // of the VM that is saved: it may never be ready
constexpr auto turn_pause = 100ms;    // between two looks whether another run is done
constexpr auto kill_timeout = 30s;
constexpr std::uint64_t default_limit = 10 * 1024;  // MiB
constexpr const char* what = "--warm";
constexpr const char* lock_suffix = ".lock";
constexpr std::size_t key_length = 64;

/// Until the guest has nothing to do that belongs to its boot. One without these programs can say
/// so by a file.
constexpr const char* settle_script = R"({
while [ -e /run/qvm-booting ]; do sleep 0.1 || sleep 1; done
! command -v cloud-init || cloud-init status --wait
! [ -d /run/systemd/system ] || systemctl is-system-running --wait
} >/dev/null 2>&1
:)";

UniqueFd open_to_read(const fs::path& file) {
    UniqueFd fd{::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
    if (!fd)
        throw Failure(
            fmt::format("open '{}': {}", file.string(), std::generic_category().message(errno)));
    return fd;
}

std::string identity_of(const fs::path& file) {
    const auto fd = open_to_read(file);
    const auto known = known_file(file, {}, fd.get());
    return fmt::format("{}\n{}\n{}", known.path.string(), known.size, known.modified);
}

std::string contents_of(const fs::path& file) {
    (void)open_to_read(file);
    return read_file(file).value_or("");
}

/// What is made once is made by one: the others wait until it is there, or nobody makes it.
class Turn {
  public:
    Turn(const SnapshotStore& store, const std::string& key, bool quiet)
        : file_(store.directory() / (key + lock_suffix)) {
        make_private_directory(store.directory());
        for (int looks = 1;; ++looks) {
            if ((lock_ = try_lock_file(file_))) return;
            // Who only takes it would be done by now.
            if (looks == 2 && !quiet) say("qvm: another run boots this machine: waiting for it");
            std::this_thread::sleep_for(turn_pause);
        }
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { ::unlink(file_.c_str()); }

  private:
    fs::path file_;
    std::optional<UniqueFd> lock_;
};

bool is_lock_of_turn(const fs::path& file) {
    const auto key = file.stem().string();
    return file.extension() == lock_suffix && key.size() == key_length &&
           key.find_first_not_of("0123456789abcdef") == std::string::npos;
}

/// The VM that is saved: a run of this process's child. Whatever ends this process, the kernel
/// sends the child a SIGTERM then, on which the VM ends as any VM does.
class BootedVm {
  public:
    /// Returns when it is ready, or has ended.
    BootedVm(const Directories& directories, RunOptions options, const Boot& boot)
        : directories_(directories), options_(std::move(options)) {
        const auto step = fmt::format("{}: boot the machine", what);
        auto [ours, childs] = make_socket_pair(step);
        const pid_t parent = ::getpid();
        child_ = ::fork();
        if (child_ < 0)
            throw Failure(
                fmt::format("{}: fork: {}", step, std::generic_category().message(errno)));
        if (child_ == 0) run(parent, childs.get(), boot);
        childs.reset();
        char told = 0;
        ssize_t size = 0;
        do size = ::read(ours.get(), &told, 1);
        while (size < 0 && errno == EINTR);
        if (size == 0) exit_status_ = wait();
    }
    BootedVm(const BootedVm&) = delete;
    BootedVm& operator=(const BootedVm&) = delete;
    ~BootedVm() {
        if (exit_status_) return;
        if (!kill()) ::kill(child_, SIGKILL);
        wait();
    }

    /// Nothing while it lives.
    [[nodiscard]] std::optional<int> exit_status() const noexcept { return exit_status_; }

  private:
    [[noreturn]] void run(pid_t parent, int socket, const Boot& boot) const noexcept {
        const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
        ::dup2(null, STDIN_FILENO);
        ::dup2(socket, STDOUT_FILENO);
        // Our locks are not the VM's.
        ::syscall(SYS_close_range, STDERR_FILENO + 1U, ~0U, 0U);
        ::prctl(PR_SET_PDEATHSIG, SIGTERM);
        int exit_status = status::failed;
        if (::getppid() == parent) try {
                exit_status = boot(options_, [] {
                    (void)try_print("ready");  // else nobody is there any more, and it ends
                    // What becomes of it is not the user's any more.
                    const UniqueFd nobody{::open("/dev/null", O_RDWR | O_CLOEXEC)};
                    for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) ::dup2(nobody.get(), fd);
                });
            } catch (const std::exception&) {
                exit_status = say_failure();
            }
        ::_exit(exit_status);
    }

    /// Whether it was told to end at once.
    [[nodiscard]] bool kill() const noexcept try {
        asio::io_context context{1};
        ControlClient vm{context.get_executor(), directories_, *options_.name};
        std::exception_ptr failure;
        asio::co_spawn(
            context,
            [&]() -> asio::awaitable<void> {
                co_await vm.ready();
                co_await vm.execute("qvm-kill", {}, kill_timeout);
            },
            [&](const std::exception_ptr& error) { failure = error; });
        context.run();
        return !failure;
    } catch (const std::exception&) {
        return false;
    }

    int wait() const noexcept {
        int end = 0;
        while (::waitpid(child_, &end, 0) < 0 && errno == EINTR) {
        }
        return WIFEXITED(end) ? WEXITSTATUS(end) : status::signalled + WTERMSIG(end);
    }

    const Directories& directories_;
    RunOptions options_;
    pid_t child_ = -1;
    std::optional<int> exit_status_;
};

/// Its boot is not over when its agent answers.
void settle(const Directories& directories, const std::string& name) {
    asio::io_context context{1};
    auto service = connect_to(directories.run / name / "exec.sock", SOCK_SEQPACKET);
    if (!service) throw not_running(directories, name);
    std::exception_ptr failure;
    bool late = false;
    asio::co_spawn(
        context,
        [&]() -> asio::awaitable<void> {
            asio::steady_timer timer{context, settle_time};
            const auto first = co_await (run_in_guest(context.get_executor(), std::move(*service),
                                                      guest_script(settle_script)) ||
                                         timer.async_wait(asio::use_awaitable));
            late = first.index() == 1;
        },
        [&](const std::exception_ptr& error) { failure = error; });
    context.run();
    if (failure) std::rethrow_exception(failure);
    if (late) throw Failure(fmt::format("the guest still boots after {} min", settle_time / 1min));
}

/// Boots the machine and saves it under `key`.
WarmStart make(const RunOptions& options, const Directories& directories,
               const SnapshotStore& store, const std::string& key, const Boot& boot) {
    if (!options.verbosity.quiet)
        say(fmt::format(
            "qvm: booting '{}' once; later runs begin where it is ready",
            options.vm.image ? options.vm.image_text() : options.vm.kernel.value_or("").string()));
    const auto name = "warm-" + random_id();
    const BootedVm vm{directories, warm_boot(options, name), boot};
    if (const auto failed = vm.exit_status()) return {options, {}, *failed};
    WarmStart start{options};
    try {
        settle(directories, name);
        SnapshotDraft draft{store.directory(), key};
        save_vm(directories, name, draft, false);
        draft.share();
        draft.keep();
        start.snapshot.emplace(store.path(key), what);  // nobody takes it away in between
    } catch (const Failure& failure) {
        throw Failure(fmt::format("{}: {}", what, failure.what()));
    }
    return start;
}

/// Throws Failure, or std::system_error, where it is not what was saved.
void check(const Snapshot& snapshot) {
    const auto& manifest = snapshot.manifest();
    for (const auto& file : manifest.files) (void)snapshot.open(file.name);
    (void)snapshot.open_state();
    for (const auto* known : {&manifest.image, &manifest.others})
        for (const auto& file : *known) (void)snapshot.open(file);
}

/// Those who use it have it to their end.
void discard(const SnapshotStore& store, const std::string& key) {
    try {
        if (store.exists(key)) (void)store.remove(key, true);
    } catch (const Failure&) {
        if (store.exists(key)) throw;  // else another run was faster
    }
}

/// The one that is kept; nothing where there is none that can be used.
std::optional<Snapshot> find(const SnapshotStore& store, const std::string& key, bool quiet) {
    if (!store.exists(key)) return std::nullopt;
    try {
        Snapshot snapshot{store.path(key), what};
        check(snapshot);
        return snapshot;
    } catch (const std::exception& failure) {
        if (!quiet) say(fmt::format("qvm: {}: it is made anew", failure.what()));
    }
    return std::nullopt;
}

WarmStart find_or_make(const RunOptions& options, const Directories& directories,
                       const SnapshotStore& store, const std::string& key, const Boot& boot) {
    if (options.warm != RunOptions::Warm::refresh)
        if (auto kept = find(store, key, options.verbosity.quiet))
            return {options, std::move(kept), status::ok};
    discard(store, key);
    return make(options, directories, store, key, boot);
}

std::uint64_t limit_in_bytes() {
    const char* text = std::getenv("QVM_WARM_SIZE");
    const auto mib =
        text == nullptr ? default_limit : value_of("QVM_WARM_SIZE", text, parse_memory);
    return mib * 1024 * 1024;
}

/// The time of its last use.
timespec used_at(const fs::path& snapshot) {
    struct stat status {};
    ::stat((snapshot / snapshot_files::manifest).c_str(), &status);
    return status.st_mtim;
}

/// Those that were not used for the longest time go, until there is room; none that is in use.
void evict(const SnapshotStore& store, std::uint64_t limit) {
    auto names = store.names();
    std::uint64_t total = 0;
    for (const auto& name : names) total += space_of(store.path(name));
    std::sort(names.begin(), names.end(), [&](const auto& a, const auto& b) {
        const auto one = used_at(store.path(a)), other = used_at(store.path(b));
        return std::pair{one.tv_sec, one.tv_nsec} < std::pair{other.tv_sec, other.tv_nsec};
    });
    for (const auto& name : names) {
        if (total <= limit) return;
        const auto space = space_of(store.path(name));
        try {
            if (store.remove(name, false)) total -= space;
        } catch (const Failure&) {
            // Another run was faster.
        }
    }
}

/// Throws Failure for what --warm cannot save.
WarmFacts read_facts(const RunOptions& options, const Directories& directories) {
    const auto vm = warm_machine(options);
    const auto qemu = find_program(machine_of(*vm.arch).qemu);
    const auto firmware =
        has_uefi(vm) ? find_firmware(*vm.arch, vm.secure_boot) : std::optional<Firmware>{};
    const auto accel = choose_accel(vm.accel, *vm.arch, host_architecture(),
                                    vm.accel == Accel::tcg ? KvmFacts{} : read_kvm());
    return {.qvm = QVM_VERSION,
            .qemu = qemu ? identity_of(*qemu) : "",
            .firmware = firmware ? identity_of(firmware->code) : "",
            .cpu = accel.kvm ? accel.cpu + cpu_of_host() : accel.cpu,
            .public_key = own_public_key(directories, true).value_or("")};
}

}  // namespace

std::string warm_key(const RunOptions& options, const WarmFacts& facts) {
    auto boot = warm_boot(options, "");
    json::array known;
    for (const auto* file : {&boot.vm.image, &boot.vm.kernel, &boot.vm.initrd})
        if (*file) known.emplace_back(identity_of(**file));
    for (const auto& drive : boot.vm.drives) known.emplace_back(identity_of(drive.file));
    if (boot.vm.user_data) known.emplace_back(contents_of(*boot.vm.user_data));
    for (const auto& file : boot.vm.ssh_keys) known.emplace_back(contents_of(file));
    for (const auto& text : {facts.qvm, facts.qemu, facts.firmware, facts.cpu, facts.public_key})
        known.emplace_back(text);
    for (const auto& stage : boot.wait_for) known.emplace_back(to_string(stage));
    boot.vm.user_data.reset();
    boot.vm.ssh_keys.clear();
    boot.vm.image_name.reset();
    make_absolute(boot.vm);
    json::object all{{"vm", to_json(boot.vm)}};
    all["known"] = std::move(known);
    return images::checksum(json::serialize(all));
}

RunOptions warm_boot(const RunOptions& options, const std::string& name) {
    RunOptions boot;
    boot.vm = options.vm;
    boot.vm.volumes.clear();
    boot.vm.publish.clear();
    boot.vm.group.reset();
    boot.vm.allow_host = boot.vm.port_isolation = false;
    boot.name = name;
    boot.detach = true;
    boot.wait_for = options.wait_for;
    const auto& stages = boot.wait_for;
    if (std::none_of(stages.begin(), stages.end(),
                     [](const auto& stage) { return stage.stage == WaitForOption::Stage::agent; }))
        boot.wait_for.push_back({.stage = WaitForOption::Stage::agent});
    boot.boot_timeout = options.boot_timeout;
    boot.timeout = longest_life;
    boot.verbosity = options.verbosity;
    return boot;
}

VmOptions warm_machine(const RunOptions& options) {
    auto vm = warm_boot(options, "").vm;
    settle_machine(vm, host_architecture());
    if (const auto why = why_not_saved(vm, false); !why.empty())
        throw Failure(fmt::format("{}: {}", what, why));
    return vm;
}

WarmStart warm_start(RunOptions options, const Boot& boot) {
    const auto directories = find_directories();
    const auto limit = limit_in_bytes();
    (void)find_image(options.vm, directories, true);
    const auto key = warm_key(options, read_facts(options, directories));
    const SnapshotStore store{directories.warm()};
    const Turn turn{store, key, options.verbosity.quiet};
    auto start = find_or_make(options, directories, store, key, boot);
    if (!start.snapshot) return start;
    ::utimensat(AT_FDCWD, (store.path(key) / snapshot_files::manifest).c_str(), nullptr, 0);
    evict(store, limit);
    auto& run = start.options;
    if (!run.name) run.name = default_name(run.vm, random_id().substr(0, 4));
    // What it has printed it does not print again.
    std::erase_if(run.wait_for,
                  [](const auto& stage) { return stage.stage == WaitForOption::Stage::log; });
    run.vm.snapshot = store.path(key).string();
    return start;
}

std::size_t sweep_warm(const Directories& directories) {
    const SnapshotStore store{directories.warm()};
    const auto count = store.sweep();
    std::error_code error;
    for (fs::directory_iterator entry{store.directory(), error}, end; !error && entry != end;
         entry.increment(error))
        if (is_lock_of_turn(entry->path()))
            if (const auto lock = try_lock_existing(entry->path())) ::unlink(entry->path().c_str());
    return count;
}

}  // namespace qvm
