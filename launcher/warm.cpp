#include "launcher/warm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
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
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/guest_script.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/snapshot.h"
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
constexpr auto longest_life = 30min;  // of the VM that is saved, should nobody end it
constexpr auto turn_pause = 100ms;    // between two looks whether another run is done
constexpr auto kill_timeout = 30s;
constexpr std::uint64_t default_limit = 10 * 1024;  // MiB

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
        : file_(store.directory() / fmt::format("{}.lock", key)) {
        make_private_directory(store.directory());
        for (bool told = quiet;; std::this_thread::sleep_for(turn_pause)) {
            if ((lock_ = try_lock_file(file_))) return;
            if (!std::exchange(told, true))
                say("qvm: another run boots this machine: waiting for it");
        }
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { ::unlink(file_.c_str()); }

  private:
    fs::path file_;
    std::optional<UniqueFd> lock_;
};

void end_vm(const Directories& directories, const std::string& name) noexcept {
    try {
        asio::io_context context{1};
        ControlClient vm{context.get_executor(), directories, name};
        asio::co_spawn(
            context,
            [&]() -> asio::awaitable<void> {
                co_await vm.ready();
                co_await vm.execute("qvm-kill", {}, kill_timeout);
                co_await vm.until_gone();
            },
            [](const std::exception_ptr&) {});
        context.run();
    } catch (const std::exception&) {
        // It is gone, or its own time-out ends it.
    }
}

/// A run of this process's child, which dies with it until it has detached. Its exit status.
int run_in_child(const RunOptions& options, const std::function<int(const RunOptions&)>& run) {
    const pid_t parent = ::getpid();
    const pid_t child = ::fork();
    if (child < 0)
        throw Failure(
            fmt::format("boot the machine: fork: {}", std::generic_category().message(errno)));
    if (child == 0) {
        const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
        ::dup2(null, STDIN_FILENO);
        ::dup2(null, STDOUT_FILENO);  // where the VM's name would be
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        int exit_status = status::failed;
        if (::getppid() == parent) try {
                exit_status = run(options);
            } catch (const std::exception&) {
                exit_status = say_failure();
            }
        ::_exit(exit_status);
    }
    int end = 0;
    while (::waitpid(child, &end, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(end) ? WEXITSTATUS(end) : status::signalled + WTERMSIG(end);
}

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
    if (late)
        throw Failure(
            fmt::format("--warm: the guest still boots after {} min", settle_time / 1min));
}

/// Boots the machine and saves it under `key`. An exit status that is not 0 where it does not boot.
int make(const RunOptions& options, const Directories& directories, const SnapshotStore& store,
         const std::string& key, const std::function<int(const RunOptions&)>& run) {
    if (!options.verbosity.quiet)
        say(fmt::format(
            "qvm: booting '{}' once; later runs begin where it is ready",
            options.vm.image ? options.vm.image_text() : options.vm.kernel.value_or("").string()));
    const auto name = "warm-" + random_id();
    if (const int exit_status = run_in_child(warm_boot(options, name), run)) return exit_status;
    try {
        settle(directories, name);
        SnapshotDraft draft{store.directory(), key};
        save_vm(directories, name, draft, false);
        draft.keep();
    } catch (...) {
        end_vm(directories, name);
        throw;
    }
    end_vm(directories, name);
    return status::ok;
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

/// Those that were not used for the longest time go, until there is room; never `key`.
void evict(const SnapshotStore& store, const std::string& key, std::uint64_t limit) {
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
            if (name != key && store.remove(name, false)) total -= space;
        } catch (const Failure&) {
            // Another run was faster.
        }
    }
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
    for (const auto& text : {facts.qvm, facts.qemu, facts.firmware, facts.public_key})
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

void check_warm(const VmOptions& boot) {
    if (const auto why = why_not_saved(boot, false); !why.empty()) throw Failure("--warm: " + why);
}

int run_warm(RunOptions options, const std::function<int(const RunOptions&)>& run) {
    const auto directories = find_directories();
    const auto limit = limit_in_bytes();
    (void)find_image(options.vm, directories, true);
    auto vm = warm_boot(options, "").vm;
    settle_machine(vm, host_architecture());
    check_warm(vm);
    const auto qemu = find_program(machine_of(*vm.arch).qemu);
    const auto firmware =
        has_uefi(vm) ? find_firmware(*vm.arch, vm.secure_boot) : std::optional<Firmware>{};
    const auto key =
        warm_key(options, {.qvm = QVM_VERSION,
                           .qemu = qemu ? identity_of(*qemu) : "",
                           .firmware = firmware ? identity_of(firmware->code) : "",
                           .public_key = own_public_key(directories, true).value_or("")});
    const SnapshotStore store{directories.warm()};
    {
        const Turn turn{store, key, options.verbosity.quiet};
        (void)store.sweep();
        if (options.warm == RunOptions::Warm::refresh && store.exists(key))
            (void)store.remove(key, true);
        if (!store.exists(key))
            if (const int failed = make(options, directories, store, key, run)) return failed;
        ::utimensat(AT_FDCWD, (store.path(key) / snapshot_files::manifest).c_str(), nullptr, 0);
        evict(store, key, limit);
    }
    if (!options.name) options.name = default_name(options.vm, random_id().substr(0, 4));
    options.warm = RunOptions::Warm::off;
    // What it has printed it does not print again.
    std::erase_if(options.wait_for,
                  [](const auto& stage) { return stage.stage == WaitForOption::Stage::log; });
    options.vm.snapshot = store.path(key).string();
    return run(options);
}

}  // namespace qvm
