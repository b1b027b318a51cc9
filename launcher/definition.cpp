#include "launcher/definition.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/image_file.h"
#include "launcher/json_reader.h"
#include "launcher/json_text.h"
#include "launcher/tpm.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

constexpr int version = 1;
constexpr const char* definition_name = "definition.json";
constexpr const char* last_name = "last.json";
constexpr std::array console_names{"console.log.1", "console.log"};  // the older half first
constexpr std::array files{
    "definition.json", "definition.json.new", "overlay.qcow2", "variables",     "tpm",
    "last.json",       "last.json.new",       "console.log",   "console.log.1", "lock"};

/// A value's own parser, and the member that it read.
template <typename Parse>
auto parsed(const char* key, const std::string& text, Parse parse) {
    try {
        return parse(text);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("'{}' is '{}', which {}", key, text, failure.what()));
    }
}

json::value or_null(const std::optional<fs::path>& path) {
    return path ? json::value(path->string()) : json::value(nullptr);
}

std::optional<fs::path> path_of(const std::optional<std::string>& text) {
    return text ? std::optional<fs::path>{*text} : std::nullopt;
}

json::value or_null(const std::optional<std::string>& text) {
    return text ? json::value(*text) : json::value(nullptr);
}

Failure is_taken(const std::string& name) {
    return Failure{fmt::format("--name '{}': a VM of that name exists", name), "qvm rm " + name};
}

}  // namespace

void make_absolute(VmOptions& options) {
    // ".." stays: behind a link it is another directory.
    const auto change = [](fs::path& path) {
        fs::path result;
        for (const auto& part : fs::absolute(path))
            if (part != ".") result /= part;
        path = result;
    };
    for (auto* path : {&options.image, &options.user_data, &options.kernel, &options.initrd})
        if (*path) change(**path);
    if (options.firmware && options.firmware->kind == FirmwareOption::Kind::file)
        change(options.firmware->file);
    for (auto& file : options.ssh_keys) change(file);
    for (auto& volume : options.volumes) change(volume.host_directory);
    for (auto& drive : options.drives) change(drive.file);
}

json::object to_json(const VmOptions& options) {
    json::array publish;
    for (const auto& port : options.publish) publish.emplace_back(to_string(port));
    json::array volumes, drives, ssh_keys;
    for (const auto& volume : options.volumes) volumes.emplace_back(to_string(volume));
    for (const auto& drive : options.drives) drives.emplace_back(to_string(drive));
    for (const auto& file : options.ssh_keys) ssh_keys.emplace_back(file.string());
    return {{"image", or_null(options.image)},
            {"image_name", or_null(options.image_name)},
            {"snapshot", or_null(options.snapshot)},
            {"disk_mib", options.disk_mib ? json::value(*options.disk_mib) : json::value(nullptr)},
            {"user_data", or_null(options.user_data)},
            {"ssh_keys", std::move(ssh_keys)},
            {"volumes", std::move(volumes)},
            {"drives", std::move(drives)},
            {"memory_mib", options.memory_mib},
            {"cpus", options.cpus},
            {"net", options.net ? json::value(to_string(*options.net)) : json::value(nullptr)},
            {"group", or_null(options.group)},
            {"uplink", to_string(options.uplink)},
            {"publish", std::move(publish)},
            {"kernel", or_null(options.kernel)},
            {"initrd", or_null(options.initrd)},
            {"append", or_null(options.append)},
            {"trust_backing", options.trust_backing},
            {"arch", options.arch ? json::value(to_string(*options.arch)) : json::value(nullptr)},
            {"firmware",
             options.firmware ? json::value(to_string(*options.firmware)) : json::value(nullptr)},
            {"secure_boot", options.secure_boot},
            {"tpm", options.tpm},
            {"allow_host", options.allow_host},
            {"port_isolation", options.port_isolation},
            {"accel", to_string(options.accel)},
            {"qemu_user", or_null(options.qemu_user)},
            {"qemu_args", json::value_from(options.qemu_args)}};
}

void check_network(const VmOptions& vm) {
    const auto mode = vm.net_or_default().mode;
    if (vm.group && !has_namespace(mode))
        throw Failure(
            fmt::format("--group '{}': VMs of a group share a namespace, and --net {} "
                        "has none",
                        *vm.group, to_string(mode)));
    if (vm.uplink != Uplink::automatic && mode != NetOption::Mode::nat)
        throw Failure(fmt::format("--uplink {}: goes with --net nat only", to_string(vm.uplink)));
    if (vm.allow_host && mode != NetOption::Mode::nat)
        throw Failure("--allow-host: goes with --net nat only");
    if (vm.port_isolation && !vm.group) throw Failure("--port-isolation: goes with --group only");
    if (!vm.publish.empty() && mode == NetOption::Mode::none)
        throw Failure("--publish: a guest with --net none has no address");
    if (!vm.publish.empty() && mode == NetOption::Mode::bridge)
        throw Failure("--publish: a guest with --net bridge=IF has an address of its LAN's");
}

VmOptions vm_options_from(const json::object& object) {
    const JsonReader reader{object};
    VmOptions options;
    options.image = path_of(reader.text("image"));
    options.image_name = reader.text("image_name");
    options.snapshot = reader.text("snapshot");
    constexpr std::uint64_t most_memory = 1024 * 1024 * 1024;  // parse_memory()'s
    if (reader.has("disk_mib")) options.disk_mib = reader.number("disk_mib", 1, most_memory);
    options.user_data = path_of(reader.text("user_data"));
    for (const auto& text : reader.texts("ssh_keys")) options.ssh_keys.emplace_back(text);
    for (const auto& text : reader.texts("volumes"))
        options.volumes.push_back(parsed("volumes", text, parse_volume));
    for (const auto& text : reader.texts("drives"))
        options.drives.push_back(parsed("drives", text, parse_drive));
    options.memory_mib = reader.number("memory_mib", options.memory_mib, most_memory);
    options.cpus = static_cast<unsigned>(reader.number("cpus", options.cpus, most_cpus));
    if (const auto net = reader.text("net")) options.net = parsed("net", *net, parse_net);
    if (const auto group = reader.text("group"))
        options.group = parsed("group", *group, parse_name);
    for (const auto& text : reader.texts("publish"))
        options.publish.push_back(parsed("publish", text, parse_publish));
    options.kernel = path_of(reader.text("kernel"));
    options.initrd = path_of(reader.text("initrd"));
    options.append = reader.text("append");
    if (const auto arch = reader.text("arch"))
        options.arch = parsed("arch", *arch, parse_architecture);
    if (const auto firmware = reader.text("firmware"))
        options.firmware = parsed("firmware", *firmware, parse_firmware);
    options.secure_boot = reader.flag("secure_boot");
    options.tpm = reader.flag("tpm");
    options.trust_backing = reader.flag("trust_backing");
    options.allow_host = reader.flag("allow_host");
    options.port_isolation = reader.flag("port_isolation");
    if (const auto uplink = reader.text("uplink"))
        options.uplink = parsed("uplink", *uplink, parse_uplink);
    if (const auto accel = reader.text("accel"))
        options.accel = parsed("accel", *accel, parse_accel);
    options.qemu_user = reader.text("qemu_user");
    options.qemu_args = reader.texts("qemu_args");
    return options;
}

std::string to_text(const Definition& definition) {
    auto vm = to_json(definition.vm);
    json::value firmware;
    if (definition.firmware) firmware = to_json(*definition.firmware);
    return json::serialize(json::object{{"version", version},
                                        {"name", definition.name},
                                        {"created", definition.created},
                                        {"virtual_size", definition.virtual_size},
                                        {"image_modified_ns", definition.image_modified},
                                        {"firmware", std::move(firmware)},
                                        {"vm", std::move(vm)}}) +
           "\n";
}

Definition parse_definition(const std::string& name, const std::string& text) {
    const auto object = parse_object(text);
    const JsonReader reader{object};
    const auto found = reader.number("version", 0);
    if (found != version)
        throw Failure(fmt::format("has version {}; this qvm knows {}", found, version));
    const auto* vm = object.if_contains("vm");
    if (vm == nullptr || !vm->is_object()) throw Failure("'vm' is not an object");
    Definition definition;
    definition.name = name;
    definition.created = reader.text("created").value_or("");
    definition.virtual_size = reader.number("virtual_size", 0);
    definition.image_modified = reader.number("image_modified_ns", 0);
    if (reader.has("firmware")) definition.firmware = firmware_from(reader.object("firmware"));
    definition.vm = vm_options_from(vm->get_object());
    return definition;
}

bool DefinitionStore::exists(const std::string& name) const {
    std::error_code ignored;
    return fs::exists(path(name), ignored);
}

std::vector<std::string> DefinitionStore::names() const {
    std::vector<std::string> result;
    for (const auto& directory : directories_in(directory_))
        if (auto name = directory.filename().string(); !name.starts_with('.'))
            result.push_back(std::move(name));
    std::sort(result.begin(), result.end());
    return result;
}

Definition DefinitionStore::read(const std::string& name) const {
    const auto file = path(name) / definition_name;
    const auto text = read_file(file);
    if (!text && !exists(name))
        throw Failure(fmt::format("VM '{}': was not created", name),
                      "qvm ps -a lists those that are");
    if (!text) throw Failure(fmt::format("read '{}': {}", file.string(), reason()));
    try {
        return parse_definition(name, *text);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("read '{}': {}", file.string(), failure.what()));
    }
}

void DefinitionStore::check_free(const std::string& name) const {
    if (exists(name)) throw is_taken(name);
}

void DefinitionStore::add(const Definition& definition) const {
    const auto target = path(definition.name);
    const auto what = fmt::format("create VM '{}'", definition.name);
    // Built aside under a name that no VM can have, and with a lock that says that we live.
    const auto aside = directory_ / fmt::format(".{}.{}", definition.name, ::getpid());
    std::optional<UniqueFd> lock;
    {
        const auto guard = lock_directory(directory_);
        make_private_directory(aside);
        lock = try_lock_file(aside / "lock");
    }
    try {
        if (definition.vm.image)
            make_named_overlay(aside / overlay_name,
                               disk_size(definition.vm.disk_mib, definition.virtual_size));
        if (definition.firmware) make_named_variables(*definition.firmware, aside / variables_name);
        if (definition.vm.tpm) make_named_tpm_state(aside / tpm_name);
        write_file(aside / definition_name, to_text(definition), true);
        // Neither an empty nor a full directory is replaced.
        if (::renameat2(AT_FDCWD, aside.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) != 0)
            throw errno == EEXIST ? is_taken(definition.name)
                                  : Failure(fmt::format("{}: {}", what, reason()));
        sync_directory(directory_);
    } catch (...) {
        remove_directory(aside, files);
        throw;
    }
}

void DefinitionStore::remove(const std::string& name) const {
    const auto lock = try_lock_file(path(name) / "lock");
    if (!lock) throw Failure(fmt::format("remove VM '{}': another process does", name));
    if (const auto foreign = foreign_file(path(name), files))
        throw Failure(fmt::format("remove VM '{}': '{}' is not qvm's", name, foreign->string()),
                      "move it away first");
    // Out of sight in one step; what is left of it by a crash is swept.
    const auto aside = directory_ / fmt::format(".{}.{}", name, ::getpid());
    if (::rename(path(name).c_str(), aside.c_str()) != 0)
        throw Failure(fmt::format("remove VM '{}': {}", name, reason()));
    ::unlink((aside / overlay_name).c_str());  // a large one takes its time
    // Without a lock in it, it is the sweeper's.
    const auto guard = lock_directory(directory_);
    if (!remove_directory(aside, files))
        throw Failure(fmt::format("remove '{}': {}", aside.string(), reason()));
}

void DefinitionStore::keep_end(const std::string& name, const LastEnd& end,
                               const fs::path& run_directory) const noexcept {
    try {
        std::error_code none;
        for (const char* log : console_names)
            fs::copy_file(run_directory / log, path(name) / log,
                          fs::copy_options::overwrite_existing, none);
        write_file(
            path(name) / last_name,
            json::serialize(json::object{
                {"exit_status", end.exit_status}, {"message", end.message}, {"at", end.at}}) +
                "\n");
    } catch (const std::exception&) {
        // A courtesy; the VM is over all the same.
    }
}

std::optional<LastEnd> DefinitionStore::last_end(const std::string& name) const {
    const auto text = read_file(path(name) / last_name);
    if (!text) return std::nullopt;
    try {
        const auto object = parse_object(*text);
        const JsonReader reader{object};
        return LastEnd{static_cast<int>(reader.number("exit_status", 0)),
                       reader.text("message").value_or(""), reader.text("at").value_or("")};
    } catch (const Failure&) {
        return std::nullopt;
    }
}

void DefinitionStore::forget_end(const std::string& name) const noexcept {
    ::unlink((path(name) / last_name).c_str());
    for (const char* log : console_names) ::unlink((path(name) / log).c_str());
}

std::size_t DefinitionStore::sweep() const {
    std::size_t count = 0;
    if (directories_in(directory_).empty()) return count;
    const auto guard = lock_directory(directory_);
    for (const auto& directory : directories_in(directory_)) {
        if (!directory.filename().string().starts_with('.')) continue;
        // Nobody is at work on it any more: its lock is free, or went with the rest.
        try {
            const auto lock = try_lock_file(directory / "lock");
            if (lock && remove_directory(directory, files)) ++count;
        } catch (const Failure&) {
            // Whoever had it has put it in its place by now, or removed it.
        }
    }
    return count;
}

std::string timestamp() {
    return timestamp(std::time(nullptr));
}

std::string timestamp(std::time_t time) {
    return fmt::format("{:%FT%TZ}", fmt::gmtime(time));
}

}  // namespace qvm
