// ps and inspect: what the supervisors say of VMs that live, and the definitions of those that do
// not.

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <optional>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/definition.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/table.h"
#include "launcher/vm_state.h"

namespace qvm {

namespace json = boost::json;

namespace {

/// A VM that was created and does not run.
VmState stopped_vm(const DefinitionStore& store, const std::string& name) {
    const auto definition = store.read(name);
    VmState state;
    state.name = name;
    state.state = "stopped";
    state.created = definition.created;
    state.named = true;
    state.vm = definition.vm;
    state.ports = definition.vm.publish;
    state.last_end = store.last_end(name);
    return state;
}

/// The members that `ps` shows, of what `inspect` does.
json::object shortened(const json::object& object) {
    json::object result = to_short_json(VmState{});
    for (auto& [key, value] : result)
        if (const auto* found = object.if_contains(key)) value = *found;
    return result;
}

std::vector<LivingVm> list(const Directories& directories, bool all) {
    auto vms = read_vms(directories.run);
    if (!all) return vms;
    const DefinitionStore store{directories};
    for (const auto& name : store.names()) {
        const auto same = [&](const auto& vm) { return vm.text("name") == name; };
        if (std::any_of(vms.begin(), vms.end(), same)) continue;
        try {
            vms.emplace_back(to_json(stopped_vm(store, name)));
        } catch (const Failure& failure) {
            // One that cannot be read must not hide the others.
            say(fmt::format("qvm: {}", failure.what()));
        }
    }
    std::sort(vms.begin(), vms.end(),
              [](const auto& a, const auto& b) { return a.text("name") < b.text("name"); });
    return vms;
}

std::string ports_of(const LivingVm& vm) {
    std::string text;
    const auto* ports = vm.json().if_contains("ports");
    if (ports == nullptr || !ports->is_array()) return text;
    for (const auto& value : ports->get_array()) {
        const auto& port = value.as_object();
        const auto address = std::string{port.at("host_address").as_string()};
        text += fmt::format("{}{}:{}->{}{}", text.empty() ? "" : ", ",
                            address.find(':') == std::string::npos ? address : "[" + address + "]",
                            port.at("host_port").to_number<int>(),
                            port.at("guest_port").to_number<int>(),
                            port.at("protocol") == "udp" ? "/udp" : "");
    }
    return text;
}

std::string image_of(const LivingVm& vm) {
    const auto snapshot = vm.text("snapshot");
    if (!snapshot.empty() && snapshot.find('/') == std::string::npos) return "snapshot:" + snapshot;
    if (auto name = vm.text("image_name"); !name.empty()) return name;
    return std::filesystem::path{vm.text("image")}.filename().string();
}

std::string or_dash(std::string text) {
    return text.empty() ? "-" : text;
}

/// How a VM that does not run ended, too.
std::string state_of(const LivingVm& vm) {
    const auto* exit_status = vm.json().if_contains("exit_status");
    if (exit_status == nullptr || !exit_status->is_int64()) return vm.text("state");
    return fmt::format("{} ({})", vm.text("state"), exit_status->get_int64());
}

std::vector<std::string> row_of(const LivingVm& vm) {
    const auto group = vm.text("group");
    return {vm.text("name"),
            state_of(vm),
            vm.text("net.mode") + (group.empty() ? "" : " (" + group + ")"),
            or_dash(vm.text("net.address")),
            or_dash(vm.text("net.host_address")),
            or_dash(ports_of(vm)),
            or_dash(image_of(vm)),
            age_of(vm.text("created")) + " ago"};
}

}  // namespace

int ps(const PsOptions& options) {
    const auto vms = list(find_directories(), options.all);
    if (options.json) {
        json::array array;
        for (const auto& vm : vms) array.push_back(shortened(vm.json()));
        print(json::serialize(array) + "\n");
        return status::ok;
    }
    std::vector<std::vector<std::string>> rows;
    if (!options.names)
        rows.push_back(
            {"NAME", "STATE", "NET", "ADDRESS", "HOST ADDRESS", "PORTS", "IMAGE", "CREATED"});
    for (const auto& vm : vms)
        rows.push_back(options.names ? std::vector{vm.text("name")} : row_of(vm));
    print(to_table(rows, !options.names && use_colour()));
    return status::ok;
}

int inspect(const InspectOptions& options) {
    const auto directories = find_directories();
    const DefinitionStore store{directories};
    json::array array;
    std::optional<Failure> unknown;
    for (const auto& name : options.names) {
        if (const auto vm = read_vm(directories.run, name))
            array.push_back(vm->json());
        else if (store.exists(name))
            array.push_back(to_json(stopped_vm(store, name)));
        else if (!unknown)
            unknown = not_running(directories, name);
    }
    // As docker does: those that there are, and then that there are not all.
    if (!array.empty() || !unknown) print(pretty(array) + "\n");
    if (unknown) throw Failure(*unknown);
    return status::ok;
}

}  // namespace qvm
