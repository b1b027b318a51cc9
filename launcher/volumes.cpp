#include "launcher/volumes.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json.hpp>
#include <numeric>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/guest_script.h"
#include "launcher/host.h"
#include "launcher/memory_file.h"
#include "launcher/qemu_command.h"
#include "launcher/unix_socket.h"
#include "qmp/error.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto command_timeout = 10s;  // of the agent
constexpr auto mount_patience = 60s;   // with a guest that loads a module for it, say

/// Parameters: the number of tries; the tag, the directory and the options of each.
constexpr const char* mount_script = R"(tries=$1
shift
while [ $# -gt 0 ]; do
    if ! grep -q "^$1 .* virtiofs " /proc/mounts; then
        mkdir -p "$2" || exit
        until why=$(mount -t virtiofs -o "$3" "$1" "$2" 2>&1); do
            tries=$((tries - 1))
            [ $tries -gt 0 ] || { echo "$why" >&2; exit 1; }
            sleep 0.1 || sleep 1
        done
    fi
    shift 3
done)";
constexpr unsigned plugged_tries = 100;  // of a guest that has yet to notice them

/// Parameters: the directory, then virtiofsd's command. Read-only is a mount's property, in a mount
/// namespace that goes with the command; virtiofsd itself has no word for it.
constexpr const char* read_only_script = R"(mount --bind -- "$1" "$1" &&
mount -o remount,bind,ro -- "$1" || exit
shift
exec "$@")";

}  // namespace

std::string volume_tag(std::size_t number) {
    return fmt::format("volume{}", number);
}

std::vector<std::string> mount_command(const std::vector<VolumeOption>& volumes, bool plugged) {
    std::vector<std::size_t> order(volumes.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto one, auto other) {
        return volumes[one].guest_directory < volumes[other].guest_directory;
    });
    std::vector<std::string> words{"/bin/sh", "-c", mount_script, "sh",
                                   std::to_string(plugged ? plugged_tries : 1)};
    for (const auto i : order)
        words.insert(words.end(), {volume_tag(i), volumes[i].guest_directory,
                                   volumes[i].read_only ? "ro" : "rw"});
    return words;
}

std::vector<std::string> virtiofsd_command(const std::string& program, const VolumeOption& volume,
                                           int socket) {
    const auto source = volume.host_directory.string();
    std::string escaped;
    for (const char c : source) {
        if (c == ',' || c == '\\') escaped += '\\';
        escaped += c;
    }
    std::vector<std::string> words{
        program, fmt::format("--fd={}", socket), "-o", "source=" + escaped, "-f", "-o", "xattr"};
    if (!volume.read_only) return words;
    words.insert(words.begin(), {"unshare", "--mount", "--propagation", "private", "--", "sh", "-c",
                                 read_only_script, "sh", source});
    return words;
}

VolumeOption resolve_volume(VolumeOption volume) {
    auto& directory = volume.host_directory;
    const auto failure = [named = directory.string()](const std::string& why) {
        return Failure(fmt::format("--volume '{}': {}", named, why));
    };
    std::error_code error;
    directory = fs::canonical(directory, error);
    if (error) throw failure(error.message());
    if (!fs::is_directory(directory, error)) throw failure("is not a directory");
    if (directory == "/") throw failure("the host's root is more than virtiofsd can share");
    return volume;
}

Volumes::Volumes(const asio::any_io_executor& executor, std::vector<VolumeOption> volumes,
                 Report debug, std::function<void(const std::string&)> died)
    : executor_(executor),
      volumes_(std::move(volumes)),
      debug_(std::move(debug)),
      died_(std::move(died)) {}

std::vector<UniqueFd> Volumes::start(const fs::path& directory) {
    std::vector<UniqueFd> sockets;
    if (volumes_.empty()) return sockets;
    const auto program = find_virtiofsd();
    if (!program) throw Failure("find 'virtiofsd': it is not installed");
    for (const auto& volume : volumes_) {
        daemons_.emplace_back(executor_, volume);
        sockets.push_back(start(daemons_.back(), *program, directory));
    }
    return sockets;
}

/// It accepts one connection, which is there already when it starts.
UniqueFd Volumes::start(Daemon& daemon, const std::string& program, const fs::path& directory) {
    constexpr int socket_number = 3;
    const auto path = directory / "volume.sock";
    const auto listener = listen_on(path);
    auto connection = connect_to(path);
    const int error = errno;
    ::unlink(path.c_str());
    if (!connection)
        throw Failure(fmt::format("connect to '{}': {}", path.string(),
                                  std::generic_category().message(error)));
    SpawnSpec spec;
    spec.argv = virtiofsd_command(program, daemon.volume, socket_number);
    spec.inherit = {{listener.get(), socket_number}};
    daemon.process.start(std::move(spec));
    asio::co_spawn(executor_, daemon.process.words.collect(debug_), asio::detached);
    asio::co_spawn(executor_, watch(daemon), asio::detached);
    return std::move(*connection);
}

awaitable<void> Volumes::watch(Daemon& daemon) {
    const auto status = co_await daemon.process.child->wait();
    co_await asio::post(executor_, asio::use_awaitable);  // the last of its stderr
    daemon.end =
        fmt::format("--volume '{}': virtiofsd ended: {}", daemon.volume.host_directory.string(),
                    daemon.process.words.text_or(status.describe()));
    died_(daemon.end);
}

awaitable<void> Volumes::plug_in(qmp::Client& monitor, std::vector<UniqueFd> sockets) {
    plugged_ = true;
    // A device's functions are noticed with its function 0, which comes last.
    for (auto i = sockets.size(); i-- > 0;) {
        const auto tag = volume_tag(i);
        json::object name{{"fdname", tag}};
        co_await monitor.execute("getfd", std::move(name), sockets[i].get(), command_timeout);
        auto chardev = socket_chardev(tag);
        co_await monitor.execute("chardev-add", std::move(chardev), command_timeout);
        json::object device{{"driver", "vhost-user-fs-pci"},
                            {"id", tag},
                            {"chardev", tag},
                            {"tag", tag},
                            {"bus", hotplug_bus},
                            {"addr", fmt::format("0.{}", i)},
                            {"multifunction", true}};
        co_await monitor.execute("device_add", std::move(device), command_timeout);
    }
}

awaitable<void> Volumes::mount(qmp::Client& agent) {
    if (volumes_.empty()) co_return;
    auto words = mount_command(volumes_, plugged_);
    json::object arguments{{"path", words.front()}, {"capture-output", true}};
    words.erase(words.begin());
    arguments["arg"] = json::value_from(words);
    const auto deadline = std::chrono::steady_clock::now() + mount_patience;
    const std::string step = "mount in the guest";
    try {
        const auto started =
            co_await agent.execute("guest-exec", std::move(arguments), command_timeout);
        const auto pid = started.at("pid").to_number<std::int64_t>();
        const auto wanted = [deadline] { return std::chrono::steady_clock::now() < deadline; };
        const auto end = co_await capture_end(agent, pid, wanted);
        if (!end) throw Failure(fmt::format("{}: not done after {} s", step, mount_patience / 1s));
        if (end->exit_status != status::ok) throw Failure(step + ": " + first_line(end->err));
    } catch (const qmp::CommandError& refusal) {
        throw Failure(step + ": guest agent: " + refusal.desc);
    } catch (const std::system_error& error) {
        throw Failure(step + ": guest agent: " + error.code().message());
    }
}

std::string Volumes::trouble() const {
    for (const auto& daemon : daemons_)
        if (!daemon.end.empty()) return daemon.end;
    return {};
}

}  // namespace qvm
