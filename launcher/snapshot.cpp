#include "launcher/snapshot.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <system_error>

#include "images/sparse.h"
#include "launcher/failure.h"
#include "launcher/json_reader.h"
#include "launcher/json_text.h"
#include "launcher/volumes.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;
using Mode = NetOption::Mode;

namespace {

constexpr int version = 1;
constexpr const char* lock_name = "lock";

// The lock is the last, by which a sweep knows what is left.
constexpr std::array files{"manifest.json", "manifest.json.new",
                           "memory",        "state",
                           "seed",          "disk-0",
                           "disk-1",        "disk-2",
                           "disk-3",        "disk-4",
                           "disk-5",        "disk-6",
                           "disk-7",        "disk-8",
                           "disk-9",        "disk-10",
                           "disk-11",       "disk-12",
                           "disk-13",       "disk-14",
                           "disk-15",       "lock"};
static_assert(std::count_if(files.begin(), files.end(), [](std::string_view name) {
                  return name.starts_with("disk-");
              }) == snapshot_files::most_disks);

json::array to_json(const std::vector<KnownFile>& known) {
    json::array array;
    for (const auto& file : known)
        array.push_back(json::object{{"path", file.path.string()},
                                     {"format", file.format},
                                     {"size", file.size},
                                     {"modified_ns", file.modified},
                                     {"checksum", file.checksum}});
    return array;
}

std::vector<KnownFile> known_files_from(const JsonReader& reader, const char* key) {
    std::vector<KnownFile> known;
    for (const auto* object : reader.objects(key)) {
        const JsonReader file{*object};
        known.push_back({.path = file.text("path").value_or(""),
                         .format = file.text("format").value_or(""),
                         .size = file.number("size", 0),
                         .modified = file.number("modified_ns", 0),
                         .checksum = file.text("checksum").value_or("")});
    }
    return known;
}

MachineFacts machine_from(const json::object& object) {
    const JsonReader reader{object};
    MachineFacts machine{.qemu = reader.text("qemu").value_or(""),
                         .machine = reader.text("machine").value_or(""),
                         .cpu = {}};
    for (const auto* word : reader.objects("cpu")) {
        const JsonReader cpu{*word};
        machine.cpu.push_back(json::object{{"cpuid", cpu.text("cpuid").value_or("")},
                                           {"features", cpu.number("features", 0)}});
    }
    return machine;
}

UniqueFd open_to_read(const fs::path& path) {
    return UniqueFd{::open(path.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC)};
}

Failure cannot_open(const fs::path& path, const std::string& what) {
    return Failure(fmt::format("{}: open '{}': {}", what, path.string(), reason()));
}

UniqueFd open_file(const fs::path& path, const std::string& what) {
    auto fd = open_to_read(path);
    if (!fd) throw cannot_open(path, what);
    return fd;
}

/// A path of what is open, whatever its name stands for by now.
fs::path path_of(const UniqueFd& fd) {
    return fmt::format("/proc/self/fd/{}", fd.get());
}

/// One value of the guest's network: the user may say the same again.
template <typename Value, typename Text>
void keep(std::optional<Value>& wanted, const std::optional<Value>& saved, const char* key,
          Text text) {
    if (wanted && saved && *wanted != *saved)
        throw Failure(fmt::format("--net {}={}: the snapshot's guest has {}", key, text(*wanted),
                                  text(*saved)));
    if (saved) wanted = saved;
}

}  // namespace

std::string snapshot_files::disk(std::size_t number) {
    return fmt::format("disk-{}", number);
}

std::string snapshot_files::check_name(const std::string& name) {
    const bool known =
        std::any_of(files.begin(), files.end(), [&](auto* file) { return name == file; });
    if (!known || name == lock_name)
        throw Failure(fmt::format("'{}' is no file of a snapshot", name));
    return name;
}

json::object to_json(const Manifest& manifest) {
    json::array own;
    for (const auto& file : manifest.files)
        own.push_back(
            json::object{{"name", file.name}, {"size", file.size}, {"checksum", file.checksum}});
    json::object machine{{"qemu", manifest.machine.qemu}, {"machine", manifest.machine.machine}};
    machine["cpu"] = manifest.machine.cpu;
    auto vm = to_json(manifest.vm);
    json::value firmware;
    if (manifest.firmware) firmware = to_json(*manifest.firmware);
    return {{"version", version},
            {"id", manifest.id},
            {"created", manifest.created},
            {"vm", std::move(vm)},
            {"machine", std::move(machine)},
            {"accel", manifest.kvm ? "kvm" : "tcg"},
            {"cpu", manifest.cpu},
            {"ready_ports", json::value_from(manifest.ready_ports)},
            {"ready_shell", manifest.ready_shell},
            {"disk_size", manifest.disk_size},
            {"disks", json::value_from(manifest.disks)},
            {"image", to_json(manifest.image)},
            {"others", to_json(manifest.others)},
            {"firmware", std::move(firmware)},
            {"files", std::move(own)}};
}

Manifest parse_manifest(const json::object& object) {
    const JsonReader reader{object};
    const auto found = reader.number("version", 0);
    if (found != version)
        throw Failure(fmt::format("has version {}; this qvm knows {}", found, version));
    Manifest manifest;
    manifest.id = reader.text("id").value_or("");
    manifest.created = reader.text("created").value_or("");
    manifest.vm = vm_options_from(reader.object("vm"));
    manifest.machine = machine_from(reader.object("machine"));
    manifest.kvm = reader.text("accel") == "kvm";
    manifest.cpu = reader.text("cpu").value_or("");
    if (reader.has("ready_ports")) manifest.ready_ports = reader.number("ready_ports", 0);
    manifest.ready_shell = static_cast<std::int64_t>(reader.number("ready_shell", 0));
    manifest.disk_size = reader.number("disk_size", 0);
    for (const auto& name : reader.texts("disks"))
        manifest.disks.push_back(snapshot_files::check_name(name));
    manifest.image = known_files_from(reader, "image");
    manifest.others = known_files_from(reader, "others");
    if (reader.has("firmware")) manifest.firmware = firmware_from(reader.object("firmware"));
    for (const auto* own : reader.objects("files")) {
        const JsonReader file{*own};
        manifest.files.push_back(
            {.name = snapshot_files::check_name(file.text("name").value_or("")),
             .size = file.number("size", 0),
             .checksum = file.text("checksum").value_or("")});
    }
    return manifest;
}

const SnapshotFile* find_file(const Manifest& manifest, std::string_view name) {
    const auto& own = manifest.files;
    const auto found =
        std::find_if(own.begin(), own.end(), [&](const auto& file) { return file.name == name; });
    return found == own.end() ? nullptr : &*found;
}

void check_complete(const Manifest& manifest) {
    auto needed = manifest.disks;
    needed.emplace_back(snapshot_files::state);
    for (const auto& name : needed)
        if (find_file(manifest, name) == nullptr)
            throw Failure(fmt::format("names no '{}' among its files", name));
}

std::string why_not_saved(const VmOptions& vm, bool persist) {
    if (persist) return "--persist: the image itself goes on changing";
    if (!vm.volumes.empty())
        return fmt::format(
            "--volume '{}': its connection cannot be saved; a clone may have volumes",
            vm.volumes.front().host_directory.string());
    if (vm.arch && *vm.arch != Architecture::x86_64)
        return fmt::format("--arch {}: QEMU does not say what such a CPU can do",
                           to_string(*vm.arch));
    if (vm.tpm) return "--tpm: clones would all have its secrets";
    for (const auto& drive : vm.drives)
        if (!drive.read_only)
            return fmt::format("--drive '{}': clones would all write to it", drive.file.string());
    return "";
}

NetOption saved_net(NetOption net, const std::optional<netns::NetworkPlan>& network,
                    const std::optional<netns::GuestPlan>& guest,
                    const std::optional<netns::PortPlan>& port) {
    net.pool.reset();
    if (port) net.mac = port->mac;
    if (!network || !guest) return net;
    // A member of a group need not have been told which mode it is.
    net.mode = network->mode == netns::Mode::flat       ? Mode::flat
               : network->mode == netns::Mode::isolated ? Mode::isolated
                                                        : Mode::nat;
    net.subnet = network->subnet;
    net.address = guest->address;
    net.mac = guest->mac;
    net.mtu = network->mtu;
    net.queues = guest->queues;
    return net;
}

VmOptions saved_options(VmOptions vm, NetOption net) {
    vm.net = std::move(net);
    vm.snapshot.reset();
    vm.user_data.reset();
    vm.ssh_keys.clear();
    vm.group.reset();
    vm.uplink = Uplink::automatic;
    vm.publish.clear();
    vm.allow_host = vm.port_isolation = false;
    vm.qemu_user.reset();
    return vm;
}

VmOptions clone_options(const Manifest& manifest, const VmOptions& wanted) {
    if (wanted.volumes.size() > Volumes::most_plugged)
        throw Failure(fmt::format("--volume: these are {}, and a clone has {} at most",
                                  wanted.volumes.size(), Volumes::most_plugged));
    auto vm = manifest.vm;
    vm.snapshot = wanted.snapshot;
    vm.net = clone_net(manifest.vm.net_or_default(), wanted.net);
    vm.group = wanted.group;
    vm.uplink = wanted.uplink;
    vm.publish = wanted.publish;
    vm.volumes = wanted.volumes;
    vm.allow_host = wanted.allow_host;
    vm.port_isolation = wanted.port_isolation;
    vm.qemu_user = wanted.qemu_user;
    vm.accel = manifest.kvm ? Accel::kvm : Accel::tcg;
    check_network(vm);
    return vm;
}

NetOption clone_net(const NetOption& saved, const std::optional<NetOption>& wanted) {
    if (!wanted) return saved;
    auto net = *wanted;
    const auto routed = [](Mode mode) { return mode == Mode::nat || mode == Mode::isolated; };
    if (net.mode != saved.mode && !(routed(net.mode) && routed(saved.mode)))
        throw Failure(fmt::format("--net {}: the snapshot's guest has {}", to_string(net.mode),
                                  to_string(saved.mode)));
    const auto text = [](const auto& value) { return value.to_string(); };
    keep(net.subnet, saved.subnet, "subnet", text);
    keep(net.address, saved.address, "address", text);
    keep(net.mac, saved.mac, "mac", [](const auto& mac) { return mac; });
    keep(net.mtu, saved.mtu, "mtu", [](unsigned mtu) { return mtu; });
    if (net.queues != 1 && net.queues != saved.queues)
        throw Failure(
            fmt::format("--net queues={}: the snapshot's guest has {}", net.queues, saved.queues));
    net.queues = saved.queues;
    return net;
}

// --- one that is used --------------------------------------------------------------------------

Snapshot::Snapshot(fs::path directory, std::string what)
    : directory_(std::move(directory)), what_(std::move(what)) {
    const auto none = [&] {
        return Failure(fmt::format("{}: there is none", what_), "qvm snapshot ls");
    };
    // All of one directory, which may be renamed and emptied at any moment.
    const UniqueFd fd{::open(directory_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)};
    if (!fd && errno != ENOENT && errno != ENOTDIR) throw cannot_open(directory_, what_);
    const auto opened = path_of(fd);
    lock_ = share_lock_existing(opened / lock_name);
    const auto text = read_file(opened / snapshot_files::manifest);
    if (!lock_ || !text) throw none();
    try {
        manifest_ = parse_manifest(parse_object(*text));
        check_complete(manifest_);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("{}: '{}' {}", what_,
                                  (directory_ / snapshot_files::manifest).string(),
                                  failure.what()));
    }
    for (const auto& own : manifest_.files) {
        auto file = open_to_read(opened / own.name);
        if (!file && errno == ENOENT && !fs::exists(directory_)) throw none();  // removed just now
        if (!file) throw cannot_open(directory_ / own.name, what_);
        files_.emplace(own.name, std::move(file));
    }
}

Snapshot::~Snapshot() {
    if (!lock_ || !directory_.filename().string().starts_with('.') || !unshare_lock(lock_)) return;
    try {
        remove_directory(directory_, files);
    } catch (const std::exception&) {
        // For the next sweep.
    }
}

bool Snapshot::has(const std::string& name) const {
    return find_file(manifest_, name) != nullptr;
}

UniqueFd Snapshot::open(const std::string& name) const {
    const auto* known = find_file(manifest_, name);
    if (known == nullptr) throw Failure(fmt::format("{}: its manifest names no '{}'", what_, name));
    // Again, since who reads it moves its offset.
    auto fd = open_to_read(path_of(files_.at(name)));
    if (!fd) throw cannot_open(directory_ / name, what_);
    const auto size = known_file(directory_ / name, {}, fd.get()).size;
    if (size != known->size)
        throw Failure(fmt::format("{}: '{}' has {} bytes, and had {} when it was made", what_, name,
                                  size, known->size));
    return fd;
}

UniqueFd Snapshot::open_state() const {
    const auto fd = open(snapshot_files::state);
    if (images::sparse_checksum(fd.get()) != find_file(manifest_, snapshot_files::state)->checksum)
        throw Failure(fmt::format("{}: '{}' is not what was written when it was made", what_,
                                  (directory_ / snapshot_files::state).string()));
    return open(snapshot_files::state);  // QEMU reads from its beginning
}

void Snapshot::link(const std::string& name, const fs::path& to) const {
    const auto from = open(name);
    if (::linkat(AT_FDCWD, path_of(from).c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW) == 0)
        return;
    const auto failed = [&](const std::string& why) {
        return Failure(fmt::format("{}: copy '{}' to '{}': {}", what_, name, to.string(), why));
    };
    const UniqueFd copy{::open(to.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    if (!copy) throw failed(reason());
    try {
        images::copy_sparse(from.get(), copy.get());
    } catch (const std::system_error& error) {
        throw failed(error.code().message());
    }
}

UniqueFd Snapshot::open(const KnownFile& file) const {
    auto fd = open_file(file.path, what_);
    if (!is_unchanged(file, known_file(file.path, {}, fd.get())))
        throw Failure(
            fmt::format("{}: '{}' was changed since it was made", what_, file.path.string()),
            "what the snapshot has of it in memory, and on its own disk, no longer fits");
    return fd;
}

std::optional<ImageFile> Snapshot::open_disk() const {
    if (manifest_.disks.empty()) return std::nullopt;
    ImageFile image;
    for (const auto& name : manifest_.disks) {
        auto fd = open(name);
        if (!image.fd) {
            image.fd = std::move(fd);
            continue;
        }
        image.facts.backing.emplace_back("qcow2");
        image.backing.push_back(std::move(fd));
    }
    for (const auto& file : manifest_.image) {
        image.backing.push_back(open(file));
        image.facts.backing.push_back(file.format);
    }
    image.facts.format = "qcow2";
    image.facts.virtual_size = manifest_.disk_size;
    image.known = manifest_.image;
    return image;
}

// --- one that is made --------------------------------------------------------------------------

SnapshotDraft::SnapshotDraft(const fs::path& store, const std::string& name)
    : store_(store),
      name_(name),
      what_(fmt::format("snapshot '{}'", name)),
      path_(store / fmt::format(".{}.{}", name, random_id())) {
    const auto guard = lock_directory(store_);
    if (fs::exists(store_ / name_))
        throw Failure(what_ + ": there is one of that name", "qvm snapshot rm " + name_);
    for (const auto& other : directories_in(store_))
        if (other.stem() == "." + name_ && !try_lock_file(other / lock_name))
            throw Failure(what_ + ": another process makes it");
    make_directory();
}

SnapshotDraft::SnapshotDraft(const fs::path& store)
    : store_(store), what_("snapshot"), path_(store / ("." + random_id())) {
    const auto guard = lock_directory(store_);
    make_directory();
}

void SnapshotDraft::make_directory() {
    make_private_directory(path_);
    auto lock = try_lock_file(path_ / lock_name);
    if (!lock) throw Failure(fmt::format("{}: lock '{}'", what_, path_.string()));
    lock_ = std::move(*lock);
}

SnapshotDraft::~SnapshotDraft() {
    if (kept_ || !unshare_lock(lock_)) return;
    try {
        remove_directory(path_, files);
    } catch (const std::exception&) {
        // For the next sweep.
    }
}

void SnapshotDraft::finish(Manifest manifest, bool kept) {
    for (const char* name : files) {
        const auto path = path_ / name;
        if (std::string_view{name} == lock_name || !fs::exists(path)) continue;
        const auto fd = open_file(path, what_);
        const bool checked = kept || std::string_view{name} == snapshot_files::state;
        try {
            manifest.files.push_back(
                {.name = name,
                 .size = known_file(path, {}, fd.get()).size,
                 .checksum = checked ? images::sparse_checksum(fd.get()) : std::string{}});
        } catch (const std::system_error& error) {
            throw Failure(
                fmt::format("{}: read '{}': {}", what_, path.string(), error.code().message()));
        }
    }
    write(manifest);
}

void SnapshotDraft::write(const Manifest& manifest) const {
    write_file(path_ / snapshot_files::manifest, json::serialize(to_json(manifest)) + "\n");
}

void SnapshotDraft::keep() {
    for (const char* name : files) {
        const UniqueFd fd{::open((path_ / name).c_str(), O_RDONLY | O_CLOEXEC)};
        if (fd && ::fsync(fd.get()) != 0)
            throw Failure(
                fmt::format("{}: write '{}': {}", what_, (path_ / name).string(), reason()));
    }
    sync_directory(path_);
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, (store_ / name_).c_str(),
                    RENAME_NOREPLACE) != 0)
        throw Failure(fmt::format(
            "{}: {}", what_,
            errno == EEXIST ? std::string{"there is one of that name by now"} : reason()));
    kept_ = true;
    sync_directory(store_);
}

void SnapshotDraft::share() {
    share_lock(lock_);
}

// --- all of them -------------------------------------------------------------------------------

std::vector<std::string> SnapshotStore::names() const {
    std::vector<std::string> names;
    for (const auto& directory : directories_in(directory_))
        if (auto name = directory.filename().string(); !name.starts_with('.'))
            names.push_back(std::move(name));
    std::sort(names.begin(), names.end());
    return names;
}

bool SnapshotStore::exists(const std::string& name) const {
    std::error_code ignored;
    return fs::exists(path(name), ignored);
}

Snapshot SnapshotStore::open(const std::string& name) const {
    return Snapshot{path(name), fmt::format("snapshot '{}'", name)};
}

bool SnapshotStore::remove(const std::string& name, bool force) const {
    const auto what = fmt::format("snapshot '{}'", name);
    if (!exists(name)) throw Failure(fmt::format("{}: there is none", what), "qvm snapshot ls");
    std::optional<UniqueFd> guard = lock_directory(directory_);
    const auto lock = try_lock_file(path(name) / lock_name);
    if (!lock && !force) return false;
    if (const auto foreign = foreign_file(path(name), files))
        throw Failure(fmt::format("{}: '{}' is not qvm's", what, foreign->string()),
                      "move it away first");
    // Out of sight in one step; what is left of it by a crash is swept.
    const auto aside = directory_ / fmt::format(".{}.{}", name, ::getpid());
    if (::rename(path(name).c_str(), aside.c_str()) != 0)
        throw Failure(fmt::format("{}: {}", what, reason()));
    guard.reset();
    if (!remove_directory(aside, files))
        throw Failure(fmt::format("remove '{}': {}", aside.string(), reason()));
    return true;
}

std::size_t SnapshotStore::sweep() const {
    std::size_t count = 0;
    const auto directories = directories_in(directory_);
    if (directories.empty()) return count;
    const auto guard = lock_directory(directory_);
    for (const auto& directory : directories) {
        if (!directory.filename().string().starts_with('.')) continue;
        try {
            const auto lock = try_lock_file(directory / lock_name);
            if (lock && remove_directory(directory, files)) ++count;
        } catch (const Failure&) {
            // Whoever had it has put it in its place by now, or removed it.
        }
    }
    return count;
}

std::uint64_t space_of(const fs::path& directory) {
    std::uint64_t bytes = 0;
    for (const char* name : files) {
        struct stat status {};
        if (::lstat((directory / name).c_str(), &status) == 0)
            bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
    return bytes;
}

}  // namespace qvm
