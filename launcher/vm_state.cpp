#include "launcher/vm_state.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <boost/json.hpp>
#include <cerrno>
#include <system_error>

#include "launcher/failure.h"
#include "netns/user_namespace.h"

namespace qvm {

namespace json = boost::json;

namespace {

json::value text_or_null(const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
}

json::value pid_or_null(pid_t pid) {
    return pid == 0 ? json::value(nullptr) : json::value(pid);
}

json::object net_json(const VmState& state) {
    const auto mode = state.vm.net_or_default().mode;
    json::object net{{"mode", to_string(mode)}, {"subnet", nullptr},  {"gateway", nullptr},
                     {"address", nullptr},      {"mac", nullptr},     {"host_address", nullptr},
                     {"subnet6", nullptr},      {"address6", nullptr}};
    if (mode == NetOption::Mode::user) {  // as QEMU has it: qemu(1), -netdev user
        net["subnet"] = "10.0.2.0/24";
        net["gateway"] = "10.0.2.2";
        net["address"] = "10.0.2.15";
    }
    if (const auto& port = state.port) {
        net["bridge"] = port->bridge;
        net["host_link"] = port->link;
        net["mac"] = port->mac;
        net["mtu"] = port->mtu;
    }
    if (!state.network || !state.guest) return net;
    net["mode"] = netns::to_string(state.network->mode);
    net["subnet"] = state.network->subnet.to_string();
    net["gateway"] = state.network->gateway.to_string();
    net["address"] = state.guest->address.to_string();
    net["mac"] = state.guest->mac;
    if (const auto address6 = netns::address6_of(*state.network, state.guest->address)) {
        net["subnet6"] = state.network->subnet6->to_string();
        net["address6"] = address6->to_string();
    }
    if (state.guest->host_address) net["host_address"] = state.guest->host_address->to_string();
    net["mtu"] = state.network->mtu;
    net["id"] = state.network->id;
    if (const auto& uplink = state.network->uplink) {
        net["uplink"] = to_string(uplink->kind);
        net["ipv6"] = uplink->ipv6;
        if (!uplink->host_link.empty()) net["host_link"] = uplink->host_link;
    }
    return net;
}

json::array ports_json(const VmState& state) {
    json::array ports;
    for (const auto& port : state.ports)
        ports.push_back({{"host_address", port.host_address.to_string()},
                         {"host_port", port.host_port},
                         {"guest_port", port.guest_port},
                         {"protocol", port.udp ? "udp" : "tcp"}});
    return ports;
}

}  // namespace

json::object to_short_json(const VmState& state) {
    const auto& image = state.vm.image;
    return {{"name", state.name},
            {"state", state.state},
            {"pid", pid_or_null(state.pid)},
            {"qemu_pid", pid_or_null(state.qemu_pid)},
            {"group", text_or_null(state.vm.group.value_or(""))},
            {"image", image ? json::value(image->string()) : json::value(nullptr)},
            {"image_name", text_or_null(state.vm.image_name.value_or(""))},
            {"snapshot", text_or_null(state.vm.snapshot.value_or(""))},
            {"net", net_json(state)},
            {"ports", ports_json(state)},
            {"created", state.created},
            {"named", state.named},
            {"exit_status",
             state.last_end ? json::value(state.last_end->exit_status) : json::value(nullptr)}};
}

json::object to_json(const VmState& state) {
    auto object = to_short_json(state);
    object["agent"] = state.agent;
    object["leaving"] = state.leaving;
    object["snapshot_id"] = text_or_null(state.snapshot_id);
    object["disk"] = state.disk;
    object["spec"] = to_json(state.vm);
    object["timings"] = state.timings;
    object["problems"] = json::value_from(state.problems);
    object["namespace_fd"] = state.namespace_fd;
    if (state.last_end)
        object["last_end"] = {{"exit_status", state.last_end->exit_status},
                              {"message", state.last_end->message},
                              {"at", state.last_end->at}};
    return object;
}

const json::value* LivingVm::find(std::string_view path) const {
    const auto* object = &object_;
    for (;;) {
        const auto dot = path.find('.');
        const auto* value = object->if_contains(path.substr(0, dot));
        if (value == nullptr || dot == std::string_view::npos) return value;
        object = value->if_object();
        if (object == nullptr) return nullptr;
        path.remove_prefix(dot + 1);
    }
}

std::string LivingVm::text(const char* path) const {
    const auto* value = find(path);
    const auto* string = value == nullptr ? nullptr : value->if_string();
    return string == nullptr ? std::string{} : std::string{*string};
}

std::int64_t LivingVm::number(const char* path) const {
    const auto* value = find(path);
    const auto* number = value == nullptr ? nullptr : value->if_int64();
    return number == nullptr ? 0 : *number;
}

bool LivingVm::flag(const char* path) const {
    const auto* value = find(path);
    return value != nullptr && value->is_bool() && value->get_bool();
}

std::optional<LivingVm> read_vm(const std::filesystem::path& run, const std::string& name) {
    const auto pid = supervisor_of(run, name);
    if (!pid) return std::nullopt;
    const auto file = run / name / "state.json";
    const auto text = read_file(file);
    if (!text && errno != ENOENT)
        throw Failure(
            fmt::format("read '{}': {}", file.string(), std::generic_category().message(errno)));
    boost::system::error_code error;
    auto value = text ? json::parse(*text, error) : json::value(nullptr);
    // Not written yet: its supervisor has only just begun.
    if (error || !value.is_object())
        value = to_json(VmState{.name = name, .pid = *pid, .created = timestamp()});
    return LivingVm{std::move(value.get_object())};
}

std::vector<LivingVm> read_vms(const std::filesystem::path& run) {
    std::vector<LivingVm> result;
    for (const auto& name : living_vms(run))
        if (auto vm = read_vm(run, name)) result.push_back(std::move(*vm));
    return result;
}

UniqueFd open_namespace(const std::filesystem::path& run, const LivingVm& vm) {
    const auto pid = vm.number("pid");
    const auto path = fmt::format("/proc/{}/fd/{}", pid, vm.number("namespace_fd"));
    UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    const int error = errno;
    // The pid was the supervisor's while we opened it, if it still is.
    if (supervisor_of(run, vm.text("name")) != std::optional{static_cast<pid_t>(pid)})
        throw Failure(fmt::format("VM '{}': has ended", vm.text("name")));
    if (!fd)
        throw Failure(fmt::format("open the namespace '{}': {}", path,
                                  std::generic_category().message(error)));
    netns::join_user_namespace(fd.get());
    return fd;
}

}  // namespace qvm
