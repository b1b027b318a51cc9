// snapshot create, ls, rm, inspect, export, import; fork.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <sstream>

#include "images/exported_file.h"
#include "images/sparse.h"
#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/interruption.h"
#include "launcher/json_text.h"
#include "launcher/memory_file.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/snapshot.h"
#include "launcher/table.h"
#include "launcher/vm_state.h"
#include "launcher/volumes.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto save_timeout = 30min;  // of memory and disk, to be written

/// Living VMs that began with that snapshot, and not with another that had its name.
std::vector<std::string> clones_of(const std::vector<LivingVm>& vms, const std::string& snapshot,
                                   const std::string& id) {
    std::vector<std::string> names;
    for (const auto& vm : vms)
        if (vm.text("snapshot") == snapshot && vm.text("snapshot_id") == id)
            names.push_back(vm.text("name"));
    return names;
}

/// What `ls --json` and `inspect` say of one.
json::object describe(const SnapshotStore& store, const std::string& name,
                      const std::vector<LivingVm>& vms) {
    const auto snapshot = store.open(name);
    auto object = to_json(snapshot.manifest());
    object["name"] = name;
    object["directory"] = snapshot.directory().string();
    object["disk_usage"] = space_of(snapshot.directory());
    object["clones"] = json::value_from(clones_of(vms, name, snapshot.manifest().id));
    return object;
}

std::string image_of(const json::object& snapshot) {
    const auto& vm = snapshot.at("vm").as_object();
    if (const auto& name = vm.at("image_name"); name.is_string())
        return std::string{name.get_string()};
    const auto* image = vm.if_contains("image");
    if (image == nullptr || !image->is_string()) return "-";
    return fs::path{std::string{image->get_string()}}.filename().string();
}

/// Has the VM's supervisor write the machine into the draft.
awaitable<SavedVm> save(const Directories& directories, const std::string& name,
                        SnapshotDraft& draft, bool kept) {
    ControlClient vm{co_await asio::this_coro::executor, directories, name};
    co_await vm.ready();
    json::object arguments{{"directory", fs::absolute(draft.path()).string()}};
    const auto answer = co_await vm.execute("qvm-save", std::move(arguments), save_timeout, "save");
    draft.finish(parse_manifest(answer.at("manifest").as_object()), kept);
    SavedVm saved;
    saved.pause_ms = answer.at("pause_ms").to_number<double>();
    saved.agent = answer.at("agent") == true;
    co_return saved;
}

void tell(const std::string& vm, const SavedVm& saved) {
    say(fmt::format("qvm: {}: stood still for {:.0f} ms", vm, saved.pause_ms));
    if (!saved.agent)
        say(
            fmt::format("qvm: {}: no guest agent answers in it yet: copies learn their name and "
                        "the time when one does",
                        vm));
}

std::string checksum_of(const fs::path& file, int fd) {
    try {
        return images::sparse_checksum(fd);
    } catch (const std::system_error& error) {
        throw Failure(fmt::format("read '{}': {}", file.string(), error.code().message()));
    }
}

/// What it prints. Throws Failure with what it says is wrong.
std::string run_tar(const std::vector<std::string>& words, const Interruption& interruption) {
    const auto done = run_tool(Tool{.argv = words, .stop = interruption.fd()});
    interruption.check();
    if (done.status.signal == 0 && done.status.code == 0) return done.out;
    constexpr std::string_view prefix = "tar: ";
    auto why = first_line(done.err);
    if (why.starts_with(prefix)) why.erase(0, prefix.size());
    throw Failure("tar: " + (why.empty() ? done.status.describe() : why));
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in{text};
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

/// That what was read is what was written: files, and no links to others.
void check_files(const fs::path& directory, const Manifest& manifest) {
    for (const auto& file : manifest.files) {
        const auto path = directory / file.name;
        const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)};
        if (!fd || !fs::is_regular_file(fs::symlink_status(path)) ||
            known_file(path, {}, fd.get()).size != file.size ||
            checksum_of(path, fd.get()) != file.checksum)
            throw Failure(fmt::format("'{}' in it is not what it was", file.name));
    }
}

/// Files that are not the snapshot's own are here as they were there: known by their contents, and
/// from now on by what this file system says of them.
void adopt(Manifest& manifest, const std::optional<fs::path>& image) {
    if (image && !manifest.image.empty()) {
        manifest.vm.image = image;
        manifest.vm.image_name.reset();
        const auto here = open_image(manifest.vm, false);
        if (here.known.size() != manifest.image.size())
            throw Failure(fmt::format("it needs a chain of {} images, and '{}' is one of {}",
                                      manifest.image.size(), image->string(), here.known.size()));
        for (std::size_t i = 0; i < here.known.size(); ++i)
            manifest.image[i].path = fs::absolute(here.known[i].path);
        manifest.vm.image = manifest.image.front().path;
    }
    for (auto* known : {&manifest.image, &manifest.others})
        for (auto& file : *known) {
            const UniqueFd fd{::open(file.path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
            if (!fd)
                throw Failure(fmt::format("it needs '{}': {}", file.path.string(),
                                          std::generic_category().message(errno)),
                              known == &manifest.image ? "--image PATH, where it is elsewhere here"
                                                       : std::string{});
            auto here = known_file(file.path, file.format, fd.get());
            if (here.size == file.size) here.checksum = checksum_of(file.path, fd.get());
            if (!is_unchanged(file, here))
                throw Failure(
                    fmt::format("it needs '{}', and what is here is another", file.path.string()));
            file.modified = here.modified;
        }
}

std::string clone_name(const ForkOptions& options, unsigned number) {
    if (!options.name) return fmt::format("{}-{}", options.vm, random_id().substr(0, 4));
    return options.count == 1 ? *options.name : fmt::format("{}-{}", *options.name, number);
}

/// That they can have what is asked for, before a machine stands still for it. Throws Failure.
void check_clones(const ForkOptions& options, const Directories& directories) {
    for (unsigned number = 1; options.name && number <= options.count; ++number) {
        const auto name = clone_name(options, number);
        const BlockedSignals blocked;
        const VmDirectory directory{directories.run, name};
        DefinitionStore{directories}.check_free(name);
    }
    if (options.restore_hook) check_readable_file("--restore-hook", *options.restore_hook);
    for (const auto& volume : options.volumes) (void)resolve_volume(parse_volume(volume));
    for (const auto& text : options.publish)
        if (const auto port = parse_publish(text).host_port; port != 0 && options.count > 1)
            throw Failure(fmt::format("--publish '{}': port {} is for one machine, and not for {}",
                                      text, port, options.count),
                          "0 in its place: each has another");
}

/// `qvm run` of one clone.
std::vector<std::string> clone_command(const ForkOptions& options, const std::string& name,
                                       const fs::path& snapshot) {
    // By its own name, which others see it by.
    const auto self = fs::read_symlink("/proc/self/exe").string();
    std::vector<std::string> words{self, "run", "--detach", "--name", name};
    if (options.quiet) words.emplace_back("--quiet");
    for (const auto& port : options.publish) words.insert(words.end(), {"--publish", port});
    for (const auto& volume : options.volumes) words.insert(words.end(), {"--volume", volume});
    if (options.restore_hook)
        words.insert(words.end(), {"--restore-hook", options.restore_hook->string()});
    words.push_back("snapshot:" + snapshot.string());
    return words;
}

}  // namespace

SavedVm save_vm(const Directories& directories, const std::string& vm, SnapshotDraft& draft,
                bool kept) {
    asio::io_context context{1};
    std::exception_ptr failure;
    SavedVm saved;
    asio::co_spawn(context, save(directories, vm, draft, kept),
                   [&](const std::exception_ptr& error, SavedVm vm_saved) {
                       failure = error;
                       saved = vm_saved;
                   });
    context.run();
    if (failure) std::rethrow_exception(failure);
    return saved;
}

int fork(const ForkOptions& options) {
    const auto directories = find_directories();
    check_clones(options, directories);
    SnapshotDraft draft{directories.snapshots()};
    const auto saved = save_vm(directories, options.vm, draft, false);
    draft.share();
    if (!options.quiet) tell(options.vm, saved);
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
    const auto saved = save_vm(directories, options.vm, draft, true);
    draft.keep();
    if (!options.quiet) tell(options.vm, saved);
    print(options.snapshot + "\n");
    return status::ok;
}

int snapshot_ls(const SnapshotLsOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    if (options.names) {
        for (const auto& name : store.names()) print(name + "\n");
        return status::ok;
    }
    const auto vms = read_vms(directories.run);
    json::array array;
    int exit_status = status::ok;
    for (const auto& name : store.names()) try {
            array.push_back(describe(store, name, vms));
        } catch (const std::exception&) {
            // One must not hide the others; and one that was removed just now is none.
            if (store.exists(name)) exit_status = say_failure();
        }
    if (options.json) {
        print(json::serialize(array) + "\n");
        return exit_status;
    }
    std::vector<std::vector<std::string>> rows{
        {"NAME", "SIZE", "MEMORY", "IMAGE", "CREATED", "CLONES"}};
    for (const auto& value : array) {
        const auto& snapshot = value.get_object();
        const auto name = std::string{snapshot.at("name").as_string()};
        const auto clones = clones_of(vms, name, std::string{snapshot.at("id").as_string()});
        rows.push_back(
            {name, size_text(snapshot.at("disk_usage").to_number<std::uint64_t>()),
             size_text(snapshot.at("vm").at("memory_mib").to_number<std::uint64_t>() * 1024 * 1024),
             image_of(snapshot), age_of(std::string{snapshot.at("created").as_string()}) + " ago",
             clones.empty() ? "-" : joined(clones)});
    }
    print(to_table(rows, use_colour()));
    return exit_status;
}

int snapshot_inspect(const SnapshotInspectOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    const auto vms = read_vms(directories.run);
    json::array array;
    int exit_status = status::ok;
    for (const auto& name : options.names) try {
            array.push_back(describe(store, name, vms));
        } catch (const std::exception&) {
            exit_status = say_failure();
        }
    if (!array.empty()) print(pretty(array) + "\n");
    return exit_status;
}

int snapshot_export(const SnapshotExportOptions& options) {
    const auto store = find_directories().snapshots();
    const auto snapshot = SnapshotStore{store}.open(options.snapshot);
    auto manifest = snapshot.manifest();
    for (auto* known : {&manifest.image, &manifest.others})
        for (auto& file : *known) file.checksum = checksum_of(file.path, snapshot.open(file).get());
    // A draft that is never kept holds the manifest with these, and the files, whoever removes
    // them.
    const SnapshotDraft draft{store};
    draft.write(manifest);
    for (const auto& file : manifest.files) snapshot.link(file.name, draft.path() / file.name);
    const Interruption interruption;
    try {
        images::ExportedFile archive{options.file, 0600};  // a guest's memory is for nobody else
        std::vector<std::string> words{"tar",
                                       "--create",
                                       "--sparse",
                                       "--auto-compress",  // by how the name ends
                                       "--file",
                                       archive.path().string(),
                                       "--directory",
                                       draft.path().string(),
                                       snapshot_files::manifest};
        for (const auto& file : manifest.files) words.push_back(file.name);
        run_tar(words, interruption);
        archive.keep();
    } catch (const Failure& failure) {
        throw Failure(fmt::format("export '{}': {}", options.file.string(), failure.what()), {},
                      failure.exit_status());
    } catch (const std::system_error& failure) {
        throw Failure(
            fmt::format("export '{}': {}", options.file.string(), failure.code().message()));
    } catch (const std::exception& failure) {
        throw Failure(fmt::format("export '{}': {}", options.file.string(), failure.what()));
    }
    return status::ok;
}

int snapshot_import(const SnapshotImportOptions& options) {
    const auto file = fs::absolute(options.file).string();
    SnapshotDraft draft{find_directories().snapshots(), options.snapshot};
    const Interruption interruption;
    try {
        check_readable_file("open", options.file);
        std::vector<std::string> words{"tar", "--extract",   "--no-same-owner",     "--file",
                                       file,  "--directory", draft.path().string(), "--"};
        // Nothing else of it is touched.
        const auto names = lines_of(run_tar({"tar", "--list", "--file", file}, interruption));
        for (const auto& name : names) words.push_back(snapshot_files::check_name(name));
        run_tar(words, interruption);
        auto manifest = parse_manifest(
            parse_object(read_file(draft.path() / snapshot_files::manifest).value_or("")));
        check_complete(manifest);
        for (const auto& name : names)
            if (name != snapshot_files::manifest && find_file(manifest, name) == nullptr)
                throw Failure(fmt::format("its manifest names no '{}'", name));
        check_files(draft.path(), manifest);
        adopt(manifest, options.image);
        draft.write(manifest);
        interruption.check();
    } catch (const Failure& failure) {
        throw Failure(fmt::format("import '{}': {}", options.file.string(), failure.what()),
                      failure.hint(), failure.exit_status());
    }
    draft.keep();
    print(options.snapshot + "\n");
    return status::ok;
}

int snapshot_rm(const SnapshotRmOptions& options) {
    const auto directories = find_directories();
    const SnapshotStore store{directories.snapshots()};
    for (const auto& name : options.names) {
        if (!store.remove(name, options.force)) {
            const auto id = store.open(name).manifest().id;
            const auto clones = clones_of(read_vms(directories.run), name, id);
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
