#include "images/debian.h"

#include <algorithm>
#include <cstdlib>
#include <set>

#include "images/boot_disk.h"
#include "images/debian_steps.h"
#include "images/error.h"
#include "images/exported_file.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view guest_packages =
    "linux-image-cloud-amd64,systemd-sysv,udev,dbus,qemu-guest-agent,cloud-init,cloud-guest-utils,"
    "netplan.io,systemd-resolved,iproute2,openssh-server,sudo,e2fsprogs";

constexpr std::uint64_t sector_size = 512;
constexpr std::uint32_t boot_end = 133120;  // 64 MiB of kernel and initramfs
constexpr std::uint64_t least_root = std::uint64_t{3} << 30;
constexpr std::uint64_t most_sectors = UINT32_MAX;

// What apt knows of proxies and the like.
std::string apt_settings(const Runner& run) {
    return run_step(run, {{"apt-config", "dump", "--format", "%F \"%v\";%n", "Acquire"}},
                    "cannot read apt's settings");
}

// mmdebstrap's last arguments: the suite, the tree and where packages come from.
std::vector<std::string> sources(const std::string& suite, const fs::path& tree,
                                 const Runner& run) {
    std::vector<std::string> words{suite, tree.string()};
    if (!suite.empty()) {
        const auto targets =
            run_step(run,
                     {{"apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                       "Created-By: Packages"}},
                     "cannot ask apt for its sources");
        const auto source = source_of_suite(targets, suite);
        if (!source) throw Error("apt has no source of a whole distribution");
        words.push_back(*source);
        return words;
    }
    const auto add = [&](const fs::path& path) {
        std::error_code none;
        if (fs::is_regular_file(path, none) && fs::file_size(path, none) > 0) {
            words.push_back(path.string());
        }
    };
    add("/etc/apt/sources.list");
    std::error_code none;
    for (const auto& entry : fs::directory_iterator("/etc/apt/sources.list.d", none)) {
        const auto kind = entry.path().extension();
        if (kind == ".list" || kind == ".sources") add(entry.path());
    }
    if (words.size() == 2) throw Error("apt has no sources in /etc/apt");
    return words;
}

void write_files(const fs::path& directory) {
    for (const auto& file : debian_files) {
        const auto path = directory / file.path;
        fs::create_directories(path.parent_path());
        write_file(path, file.text);
    }
}

std::string joined(std::string_view first, const std::vector<std::string>& others) {
    std::string text(first);
    for (const auto& other : others) text += "," + other;
    return text;
}

// Everything dies with `unshare`, and its mounts are nobody else's.
std::vector<std::string> mmdebstrap(const fs::path& directory, const DebianOptions& options,
                                    const fs::path& tree, const Runner& run) {
    const char* path = std::getenv("PATH");
    std::vector<std::string> argv{
        "env",
        std::string("PATH=") + (path ? path : "/usr/bin:/bin") + ":/usr/sbin:/sbin",
        "QVM_FILES=" + (directory / "files").string(),
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "mmdebstrap",
        "--verbose",
        "--mode=root",
        "--variant=minbase",
        "--include=" + joined(guest_packages, options.packages),
        "--aptopt=" + (directory / "apt.conf").string(),
        "--aptopt=Acquire::Languages \"none\"",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--essential-hook=cp -r --no-preserve=mode,ownership \"$QVM_FILES/.\" \"$1\"",
    };
    const auto rest = sources(options.suite, tree, run);
    argv.insert(argv.end(), rest.begin(), rest.end());
    return argv;
}

void install_packages(const fs::path& directory, const DebianOptions& options, const fs::path& tree,
                      const Runner& run, const Progress& progress) {
    write_files(directory / "files");
    write_file(directory / "apt.conf", apt_settings(run));
    DebianProgress meter(progress);
    const auto result = run({.argv = mmdebstrap(directory, options, tree, run),
                             .directory = directory,
                             .listener = [&](std::string_view piece) { meter.feed(piece); }});
    if (result.status == 0) return;
    const auto reason = debian_error(result.error);
    throw Error("mmdebstrap: " +
                (reason.empty() ? "status " + std::to_string(result.status) : reason));
}

// A path in the tree, and not where a link that a package has there leads on the host.
fs::path in_tree(const fs::path& tree, const fs::path& relative) {
    fs::path directory;
    for (const auto& part : relative.parent_path()) {
        directory /= part;
        if (fs::is_symlink(tree / directory)) {
            throw Error("a package has made /" + directory.string() + " a link");
        }
    }
    return tree / relative;
}

// What each guest makes for itself, or has no use for.
void tidy(const fs::path& tree) {
    fs::remove(in_tree(tree, "etc/apt/apt.conf.d/99mmdebstrap"));
    for (const auto& entry : fs::directory_iterator(in_tree(tree, "etc/ssh/"))) {
        if (entry.path().filename().string().starts_with("ssh_host_")) fs::remove(entry.path());
    }
    for (const auto& link : debian_links) {
        const auto path = in_tree(tree, link.path);
        fs::create_directories(path.parent_path());
        fs::remove(path);
        fs::create_symlink(link.text, path);
    }
}

void copy_boot_files(const fs::path& tree, const fs::path& to) {
    const auto boot = in_tree(tree, "boot/");
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(boot)) {
        if (!entry.is_symlink()) names.insert(entry.path().filename());
    }
    const auto version = newest_kernel(names);
    if (!version) throw Error("there is no kernel with an initramfs among the packages' files");
    fs::copy_file(boot / ("vmlinuz-" + *version), to / "vmlinuz");
    fs::copy_file(boot / ("initrd.img-" + *version), to / "initrd");
}

// Room for the files, and as much again for the guest's own.
std::uint32_t sectors_for(const fs::path& tree) {
    constexpr std::uint64_t block = 4096;
    std::uint64_t size = 0;
    for (const auto& entry : fs::recursive_directory_iterator(tree)) {
        size += block;
        if (fs::is_regular_file(entry.symlink_status())) size += entry.file_size();
    }
    const auto root = std::max(least_root, 2 * size);
    const auto sectors = boot_end + root / sector_size / 2048 * 2048;
    if (sectors > most_sectors) throw Error("its packages are too large for a disk");
    return static_cast<std::uint32_t>(sectors);
}

fs::path make_disk(const fs::path& directory, const fs::path& tree, const Runner& run) {
    copy_boot_files(tree, directory);
    const BootDisk spec{.sectors = sectors_for(tree),
                        .boot_end = boot_end,
                        .append =
                            "root=LABEL=root ro console=ttyS0 quiet cryptomgr.notests "
                            "mitigations=off init_on_alloc=0"};
    auto disk = make_boot_disk(directory, spec, run);
    const auto size = std::to_string((spec.sectors - boot_end) / 2) + "k";
    run_step(run,
             {{"mke2fs", "-q", "-t", "ext4", "-L", "root", "-m", "0", "-E",
               "offset=" + std::to_string(boot_end * sector_size) + ",lazy_itable_init=0", "-d",
               tree.string(), disk.string(), size}},
             "cannot write the disk's file system");
    return disk;
}

}  // namespace

const std::vector<BuildTool> debian_tools{
    {"mmdebstrap", "mmdebstrap"}, {"apt-get", "apt"},
    {"unshare", "util-linux"},    {"mformat", "mtools"},
    {"syslinux", "syslinux"},     {"mke2fs", "e2fsprogs"},
    {"qemu-img", "qemu-utils"},   {boot_code, "syslinux-common"},
};

void build_debian(const fs::path& output, const fs::path& work, const DebianOptions& options,
                  const Runner& run, const Progress& progress) {
    ExportedFile file(output, 0666);
    const TemporaryDirectory directory(work);
    const auto tree = directory.path() / "tree";
    install_packages(directory.path(), options, tree, run, progress);
    tidy(tree);
    progress("writing the disk");
    const auto disk = make_disk(directory.path(), tree, run);
    progress("converting it to qcow2");
    convert_to_qcow2(disk, file.path(), false, run);
    file.keep();
}

}  // namespace qvm::images
