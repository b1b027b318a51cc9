// snapshot create, ls, rm, inspect; fork.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/snapshot.h"
#include "launcher/table.h"
#include "launcher/vm_state.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto save_timeout = 30min;  // of memory and disk, to be written

std::string size_text(std::uint64_t bytes) {
    constexpr std::uint64_t mib = 1024 * 1024;
    if (bytes >= 1024 * mib)
        return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 1024 / mib);
    return fmt::format("{} MiB", (bytes + mib - 1) / mib);
}

/// Living VMs that began with that snapshot.
std::vector<std::string> clones_of(const std::vector<LivingVm>& vms, const std::string& snapshot) {
    std::vector<std::string> names;
    for (const auto& vm : vms)
        if (vm.text("snapshot") == snapshot) names.push_back(vm.text("name"));
    return names;
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

/// What `ls --json` and `inspect` say of one.
json::object describe(const SnapshotStore& store, const std::string& name,
                      const std::vector<LivingVm>& vms) {
    const auto snapshot = store.open(name);
    auto object = to_json(snapshot.manifest());
    object["name"] = name;
    object["directory"] = snapshot.directory().string();
    object["disk_usage"] = space_of(snapshot.directory());
    object["clones"] = json::value_from(clones_of(vms, name));
    return object;
}

std::string image_of(const json::object& snapshot) {
    const auto* image = snapshot.at("vm").as_object().if_contains("image");
    if (image == nullptr || !image->is_string()) return "-";
    return fs::path{std::string{image->get_string()}}.filename().string();
}

/// Has the VM's supervisor write the machine into the draft. How long the guest stood still, in ms.
awaitable<double> save(const Directories& directories, const std::string& name,
                       SnapshotDraft& draft, bool kept) {
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    co_await vm.ready();
    json::object arguments{{"directory", fs::absolute(draft.path()).string()}};
    const auto answer = co_await vm.execute("qvm-save", std::move(arguments), save_timeout);
    draft.finish(parse_manifest(answer.at("manifest").as_object()), kept);
    co_return answer.at("pause_ms").to_number<double>();
}

/// `qvm run` of one clone.
std::vector<std::string> clone_command(const ForkOptions& options, const std::string& name,
                                       const fs::path& snapshot) {
    std::vector<std::string> words{"/proc/self/exe", "run", "--detach", "--name", name};
    if (options.quiet) words.emplace_back("--quiet");
    for (const auto& port : options.publish) words.insert(words.end(), {"--publish", port});
    if (options.restore_hook)
        words.insert(words.end(), {"--restore-hook", options.restore_hook->string()});
    words.push_back("snapshot:" + snapshot.string());
    return words;
}

std::string clone_name(const ForkOptions& options, unsigned number) {
    if (!options.name) return fmt::format("{}-{}", options.vm, random_id().substr(0, 4));
    return options.count == 1 ? *options.name : fmt::format("{}-{}", *options.name, number);
}

}  // namespace

double save_vm(const Directories& directories, const std::string& vm, SnapshotDraft& draft,
               bool kept) {
    asio::io_context context{1};
    std::exception_ptr failure;
    double pause = 0;
    asio::co_spawn(context, save(directories, vm, draft, kept),
                   [&](const std::exception_ptr& error, double took) {
                       failure = error;
                       pause = took;
                   });
    context.run();
    if (failure) std::rethrow_exception(failure);
    return pause;
}

int fork(const ForkOptions& options) {
    const auto directories = find_directories();
    SnapshotDraft draft{directories.snapshots(), options.vm};
    const auto pause = save_vm(directories, options.vm, draft, false);
    draft.share();
    if (!options.quiet) say(fmt::format("qvm: {}: stood still for {:.0f} ms", options.vm, pause));
    struct Clone {
        std::string name;
        Child process;
    };
    std::vector<Clone> clones;
    for (unsigned number = 1; number <= options.count; ++number) {
        SpawnSpec spec;
        auto name = clone_name(options, number);
        spec.argv = clone_command(options, name, fs::absolute(draft.path()));
        spec.stderr_fd = STDERR_FILENO;
        clones.push_back({std::move(name), Child::spawn(spec)});
    }
    int exit_status = status::ok;
    for (auto& clone : clones) {
        const auto end = clone.process.wait_blocking();
        if (end.signal == 0 && end.code == 0)
            print(clone.name + "\n");
        else if (exit_status == status::ok)
            exit_status = end.signal == 0 ? end.code : status::failed;
    }
    return exit_status;
}

int snapshot_create(const SnapshotCreateOptions& options) {
    const auto directories = find_directories();
    SnapshotDraft draft{directories.snapshots(), options.snapshot};
    const auto pause = save_vm(directories, options.vm, draft, true);
    draft.keep();
    if (!options.quiet) say(fmt::format("qvm: {}: stood still for {:.0f} ms", options.vm, pause));
    print(options.snapshot + "\n");
    return status::ok;
}

int snapshot_ls(const SnapshotLsOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    const auto vms = read_vms(directories.run);
    json::array array;
    for (const auto& name : store.names()) try {
            array.push_back(describe(store, name, vms));
        } catch (const Failure& failure) {
            say(fmt::format("qvm: {}", failure.what()));  // one must not hide the others
        }
    if (options.json) {
        print(json::serialize(array) + "\n");
        return status::ok;
    }
    std::vector<std::vector<std::string>> rows{
        {"NAME", "SIZE", "MEMORY", "IMAGE", "CREATED", "CLONES"}};
    for (const auto& value : array) {
        const auto& snapshot = value.get_object();
        const auto name = std::string{snapshot.at("name").as_string()};
        const auto clones = clones_of(vms, name);
        rows.push_back(
            {name, size_text(snapshot.at("disk_usage").to_number<std::uint64_t>()),
             size_text(snapshot.at("vm").at("memory_mib").to_number<std::uint64_t>() * 1024 * 1024),
             image_of(snapshot), age_of(std::string{snapshot.at("created").as_string()}) + " ago",
             clones.empty() ? "-" : joined(clones)});
    }
    print(to_table(rows, use_colour()));
    return status::ok;
}

int snapshot_inspect(const SnapshotInspectOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    const auto vms = read_vms(directories.run);
    json::array array;
    for (const auto& name : options.names) array.push_back(describe(store, name, vms));
    print(pretty(array) + "\n");
    return status::ok;
}

int snapshot_rm(const SnapshotRmOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    for (const auto& name : options.names) {
        if (!store.remove(name, options.force)) {
            const auto clones = clones_of(read_vms(directories.run), name);
            throw Failure(
                fmt::format("snapshot '{}': is in use{}", name,
                            clones.empty() ? "" : " by " + joined(clones)),
                fmt::format("qvm snapshot rm -f {}: the space is free when they have ended", name));
        }
        print(name + "\n");
    }
    return status::ok;
}

}  // namespace qvm
