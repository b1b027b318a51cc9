// net ls, net inspect, net exec: the namespaces of living VMs and groups.

#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <map>
#include <system_error>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/failure.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/table.h"
#include "launcher/vm_state.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

/// The VMs of one namespace.
struct LivingNetwork {
    std::string name;  ///< the group's, or the only VM's
    std::vector<LivingVm> vms;
};

std::vector<LivingNetwork> networks(const Directories& directories) {
    std::map<std::string, LivingNetwork> by_id;
    for (auto& vm : read_vms(directories.run)) {
        const auto id = vm.text("net.id");
        if (id.empty()) continue;
        auto& network = by_id[id];
        const auto group = vm.text("group");
        network.name = group.empty() ? vm.text("name") : group;
        network.vms.push_back(std::move(vm));
    }
    std::vector<LivingNetwork> result;
    for (auto& [id, network] : by_id) result.push_back(std::move(network));
    std::sort(result.begin(), result.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    return result;
}

json::object to_json(const LivingNetwork& network) {
    const auto& any = network.vms.front();
    const auto or_null = [&](const char* path) {
        const auto text = any.text(path);
        return text.empty() ? json::value(nullptr) : json::value(text);
    };
    json::array vms;
    for (const auto& vm : network.vms) {
        const auto host_address = vm.text("net.host_address");
        json::object object{{"name", vm.text("name")},
                            {"address", vm.text("net.address")},
                            {"mac", vm.text("net.mac")},
                            {"host_address", nullptr}};
        if (!host_address.empty()) object["host_address"] = host_address;
        vms.push_back(std::move(object));
    }
    return {{"name", network.name},
            {"group", or_null("group")},
            {"mode", any.text("net.mode")},
            {"subnet", any.text("net.subnet")},
            {"gateway", any.text("net.gateway")},
            {"mtu", any.number("net.mtu")},
            {"host_link", or_null("net.host_link")},
            {"vms", std::move(vms)}};
}

bool has_namespace(const LivingVm& vm) {
    return vm.number("namespace_fd") > 0;
}

/// A VM by its name, or any member of the group of that name.
LivingVm member_of(const Directories& directories, const std::string& name) {
    auto found = read_vm(directories.run, name);
    if (!found)
        for (auto& vm : read_vms(directories.run))
            if (vm.text("group") == name && (!found || has_namespace(vm))) found = std::move(vm);
    if (!found)
        throw Failure(fmt::format("network '{}': no VM or group of that name runs", name),
                      "qvm net ls lists those that do");
    if (found->text("state") == "starting" && !has_namespace(*found))
        throw Failure(fmt::format("network '{}': VM '{}' is starting", name, found->text("name")),
                      "qvm events says when it has started");
    if (found->text("net.id").empty())
        throw Failure(
            fmt::format("network '{}': --net {} has no namespace", name, found->text("net.mode")));
    return std::move(*found);
}

void check(int result, const std::string& step) {
    if (result < 0)
        throw Failure(
            fmt::format("net exec: {}: {}", step, std::generic_category().message(errno)));
}

/// As `ip netns exec` does it: /sys of that namespace, and its own resolv.conf, in a mount
/// namespace that ends with the command.
void enter(int space, const fs::path& resolv_conf) {
    check(::setns(space, CLONE_NEWNET), "enter the namespace");
    check(::unshare(CLONE_NEWNS), "make a mount namespace");
    check(::mount("", "/", nullptr, MS_SLAVE | MS_REC, nullptr), "make the mounts our own");
    ::umount2("/sys", MNT_DETACH);
    check(::mount("qvm", "/sys", "sysfs", 0, nullptr), "mount '/sys'");
    std::error_code error;
    const auto target = fs::canonical("/etc/resolv.conf", error);
    if (!error && fs::exists(resolv_conf, error))
        check(::mount(resolv_conf.c_str(), target.c_str(), nullptr, MS_BIND, nullptr),
              fmt::format("mount '{}'", target.string()));
}

}  // namespace

int net_ls(const NetLsOptions& options) {
    const auto all = networks(find_directories());
    if (options.json) {
        json::array array;
        for (const auto& network : all) array.push_back(to_json(network));
        print(json::serialize(array) + "\n");
        return status::ok;
    }
    std::vector<std::vector<std::string>> rows{{"NAME", "MODE", "SUBNET", "HOST LINK", "VMS"}};
    for (const auto& network : all) {
        const auto& any = network.vms.front();
        std::string names;
        for (const auto& vm : network.vms) names += (names.empty() ? "" : ", ") + vm.text("name");
        const auto link = any.text("net.host_link");
        rows.push_back({network.name, any.text("net.mode"), any.text("net.subnet"),
                        link.empty() ? "-" : link, names});
    }
    print(to_table(rows, use_colour()));
    return status::ok;
}

int net_inspect(const NetInspectOptions& options) {
    const auto directories = find_directories();
    const auto id = member_of(directories, options.name).text("net.id");
    json::array array;
    for (const auto& network : networks(directories))
        if (network.vms.front().text("net.id") == id) array.push_back(to_json(network));
    print(pretty(array) + "\n");
    return status::ok;
}

int net_exec(const NetExecOptions& options) {
    const auto directories = find_directories();
    const auto vm = member_of(directories, options.name);
    const auto group = vm.text("group");
    const auto directory =
        group.empty() ? directories.run / vm.text("name") : directories.groups() / group;
    const auto space = open_namespace(directories.run, vm);
    enter(space.get(), directory / "resolv.conf");

    const int error = become(options.command);
    throw Failure(fmt::format("net exec '{}': {}", options.command.front(),
                              std::generic_category().message(error)),
                  {}, error == ENOENT ? status::not_found : status::not_runnable);
}

}  // namespace qvm
