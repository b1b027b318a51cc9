#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <set>

#include "images/demo_files.h"
#include "images/demo_steps.h"
#include "images/elf.h"
#include "images/error.h"

namespace qvm::images {
namespace {

// Loaded when the guest boots.
constexpr std::array boot_modules = {"virtio_pci", "virtio_net",  "virtio_console",
                                     "virtio_blk", "virtio_rng",  "button",
                                     "evdev",      "pvpanic_pci", "pvpanic_mmio"};
// There for whoever mounts something: modprobe, and so the kernel, finds them.
constexpr std::array further_modules = {
    "vfat",    "nls_cp437", "nls_ascii", "nls_utf8",    "isofs", "virtiofs", "virtio_balloon",
    "overlay", "sr_mod",    "sd_mod",    "virtio_scsi", "ahci",  "efivarfs", "tpm_tis"};

std::string base_name(const std::string& path) {
    return path.substr(path.rfind('/') + 1);
}

bool is_module(std::string_view path) {
    return path.ends_with(".ko");
}

// virtio-rng.ko is the module virtio_rng.
std::string module_name(const std::string& path) {
    auto name = base_name(path);
    name.resize(name.size() - 3);
    std::ranges::replace(name, '-', '_');
    return name;
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts;
    while (!text.empty()) {
        const auto end = std::min(text.find(separator), text.size());
        if (end > 0) parts.emplace_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}

// The kernel's modules, and those of them that the guest gets.
class Modules {
  public:
    explicit Modules(const Tree& kernel) {
        for (const auto& entry : kernel) {
            if (is_module(entry.first)) by_name_[module_name(entry.first)] = &entry;
        }
    }

    // With everything that it needs. What the kernel has built in is not here, and is skipped.
    void add(const std::string& name) {
        for (const auto& module : load_order(name)) chosen_.insert(module);
    }

    // The modules, and the two indexes in which modprobe looks (modules.dep(5): after the colon,
    // what to load first stands last).
    void put_into(Tree& tree, const std::string& directory) const {
        std::string depends, aliases;
        for (const auto& name : chosen_) {
            const auto& [path, node] = *by_name_.at(name);
            tree[path] = node;
            auto order = load_order(name);
            std::ranges::reverse(order);
            for (const auto& module : order) {
                depends += by_name_.at(module)->first.substr(directory.size() + 1);
                depends += module == name ? ": " : " ";
            }
            depends += '\n';
            for (const auto& alias : module_info(node.data, "alias")) {
                aliases += fmt::format("alias {} {}\n", alias, name);
            }
        }
        tree[directory + "/modules.dep"] = Node::file(depends);
        tree[directory + "/modules.alias"] = Node::file(aliases);
    }

  private:
    // A module's dependencies and then the module itself.
    std::vector<std::string> load_order(const std::string& name) const {
        std::vector<std::string> order;
        append_in_order(name, order);
        return order;
    }

    void append_in_order(const std::string& name, std::vector<std::string>& order) const {
        const auto found = by_name_.find(name);
        if (found == by_name_.end() || std::ranges::count(order, name)) return;
        for (const auto& depends : module_info(found->second->second.data, "depends")) {
            for (auto& other : split(depends, ',')) {
                std::ranges::replace(other, '-', '_');
                append_in_order(other, order);
            }
        }
        order.push_back(name);
    }

    std::map<std::string, const Tree::value_type*> by_name_;
    std::set<std::string> chosen_;
};

// lib/modules/VERSION, or usr/lib/modules/VERSION in packages of a merged /usr.
std::string modules_directory(const Tree& kernel) {
    for (const auto& [path, node] : kernel) {
        const auto end = path.find("/kernel/");
        if (is_module(path) && end != std::string::npos) return path.substr(0, end);
    }
    throw Error("the kernel package has no modules that can be read");
}

void add_modules(Tree& tree, const Tree& kernel) {
    Modules modules(kernel);
    std::string at_boot;
    for (const auto* name : boot_modules) {
        modules.add(name);
        at_boot += std::string(name) + "\n";
    }
    for (const auto* name : further_modules) modules.add(name);
    modules.put_into(tree, modules_directory(kernel));
    tree["etc/modules"] = Node::file(at_boot);
}

Tree read_agent(const std::vector<std::filesystem::path>& packages, const std::string& libraries) {
    const auto wanted = [&](std::string_view path) {
        return path == "usr/sbin/qemu-ga" || path.find(libraries) != std::string_view::npos;
    };
    Tree all;
    for (const auto& package : packages) all.merge(read_deb(package, wanted));
    return all;
}

// A shared library's bytes: `soname` is a file in the directory of `libraries`, at the root or in
// usr, or a symbolic link to one beside it.
const Node& library(const Tree& tree, const std::string& libraries, const std::string& soname) {
    for (const std::string prefix : {"", "usr/"}) {
        const auto directory = prefix + libraries + "/";
        auto found = tree.find(directory + soname);
        if (found != tree.end() && !S_ISREG(found->second.mode)) {
            found = tree.find(directory + base_name(found->second.data));
        }
        if (found != tree.end()) return found->second;
    }
    throw Error("no package has the shared library " + soname);
}

void add_agent(Tree& tree, const std::vector<std::filesystem::path>& packages,
               const DemoMachine& machine) {
    const Tree all = read_agent(packages, machine.libraries);
    const auto agent = all.find("usr/sbin/qemu-ga");
    if (agent == all.end()) throw Error("qemu-guest-agent has no usr/sbin/qemu-ga");
    tree[agent->first] = agent->second;

    std::set<std::string> seen;
    auto pending = needed_libraries(agent->second.data);
    while (!pending.empty()) {
        const auto soname = pending.back();
        pending.pop_back();
        if (!seen.insert(soname).second) continue;
        const Node& node = library(all, machine.libraries, soname);
        tree[machine.libraries + "/" + soname] = Node::file(node.data, 0755);
        for (auto& next : needed_libraries(node.data)) pending.push_back(std::move(next));
    }
    tree[machine.linker] = Node::symlink("/" + machine.libraries + "/" + base_name(machine.linker));
}

void add_scripts(Tree& tree) {
    const auto script = [](std::string_view text) { return Node::file(std::string(text), 0755); };
    tree["init"] = script(demo_files::init);
    tree["sbin/hotplug"] = script(demo_files::hotplug);
    tree["sbin/shutdown"] = script(demo_files::shutdown);
    tree["etc/udhcpc.sh"] = script(demo_files::udhcpc);
    tree["etc/acpi/PWRF/00000080"] = Node::file("#!/bin/sh\nexec poweroff\n", 0755);
    tree["etc/profile"] = Node::file("PS1='demo# '\n");
    tree["etc/hosts"] = Node::file("127.0.0.1 localhost\n");
    tree["etc/passwd"] = Node::file("root:x:0:0:root:/root:/bin/sh\n");
    tree["etc/group"] = Node::file("root:x:0:\n");
}

void add_skeleton(Tree& tree) {
    for (const auto* path : {"dev", "proc", "sys", "run", "tmp", "root", "mnt", "bin", "sbin",
                             "usr/bin", "usr/sbin", "var"}) {
        tree[path] = Node::directory();
    }
    tree["var/run"] = Node::symlink("/run");
    tree["var/log"] = Node::symlink("/tmp");
    tree["dev/console"] = Node::char_device(5, 1);
    tree["dev/null"] = Node::char_device(1, 3, 0666);
}

}  // namespace

DemoTree make_tree(const DemoPackages& packages, const DemoMachine& machine) {
    const Tree kernel = read_deb(packages.kernel, [](std::string_view path) {
        return path.starts_with("boot/vmlinuz-") || is_module(path);
    });
    const Tree busybox = read_deb(
        packages.busybox, [](std::string_view path) { return path.ends_with("bin/busybox"); });
    const auto vmlinuz = kernel.lower_bound("boot/vmlinuz-");
    if (vmlinuz == kernel.end() || !vmlinuz->first.starts_with("boot/vmlinuz-")) {
        throw Error("the kernel package has no boot/vmlinuz");
    }
    if (busybox.empty()) throw Error("busybox-static has no bin/busybox");
    const auto loader_name = "/systemd-boot" + machine.efi + ".efi";
    const Tree loader = read_deb(
        packages.loader, [&](std::string_view path) { return path.ends_with(loader_name); });
    if (loader.empty()) throw Error("systemd-boot-efi has no " + base_name(loader_name));

    DemoTree made;
    made.kernel = vmlinuz->second.data;
    made.loader = loader.begin()->second.data;
    add_skeleton(made.initramfs);
    add_scripts(made.initramfs);
    made.initramfs["bin/busybox"] = busybox.begin()->second;
    made.initramfs["bin/sh"] = Node::symlink("busybox");
    add_modules(made.initramfs, kernel);
    add_agent(made.initramfs, packages.agent, machine);
    return made;
}

}  // namespace qvm::images
