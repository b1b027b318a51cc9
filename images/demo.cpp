#include "images/demo.h"

#include "images/boot_disk.h"
#include "images/demo_steps.h"
#include "images/exported_file.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t disk_sectors = 64u << 11;  // 64 MiB

}  // namespace

DemoMachine demo_machine(DemoArchitecture architecture) {
    if (architecture == DemoArchitecture::arm64)
        return {.debian = "arm64",
                .libraries = "lib/aarch64-linux-gnu",
                .linker = "lib/ld-linux-aarch64.so.1",
                .console = "ttyAMA0",
                .efi = "aa64"};
    return {.debian = "amd64",
            .libraries = "lib/x86_64-linux-gnu",
            .linker = "lib64/ld-linux-x86-64.so.2",
            .console = "ttyS0",
            .efi = "x64",
            .bios = true};
}

std::vector<BuildTool> demo_tools(DemoArchitecture architecture) {
    std::vector<BuildTool> tools{
        {"dpkg", "dpkg"}, {"apt-get", "apt"}, {"mformat", "mtools"}, {"qemu-img", "qemu-utils"}};
    if (demo_machine(architecture).bios) {
        tools.insert(tools.end(), {{"syslinux", "syslinux"}, {boot_code, "syslinux-common"}});
    }
    return tools;
}

void build_demo(const fs::path& output, DemoArchitecture architecture,
                const fs::path& package_cache, const Runner& run, const Progress& progress) {
    const auto machine = demo_machine(architecture);
    const TemporaryDirectory work(fs::temp_directory_path());
    ExportedFile disk(output, 0666);

    const auto packages = download_packages(
        package_cache.empty() ? work.path() : fs::absolute(package_cache), machine, run, progress);

    progress("building the initramfs");
    const auto tree = make_tree(packages, machine);
    write_file(work.path() / "vmlinuz", tree.kernel);
    write_file(work.path() / "loader.efi", tree.loader);
    write_initramfs(tree.initramfs, work.path() / "initrd", Compression::zstd);

    progress("writing the disk");
    const auto raw =
        make_boot_disk(work.path(),
                       {.sectors = disk_sectors,
                        .boot_end = disk_sectors,
                        .append = "console=" + machine.console + " quiet cryptomgr.notests",
                        .efi = machine.efi,
                        .bios = machine.bios},
                       run);
    convert_to_qcow2(raw, disk.path(), true, run);
    disk.keep();
}

}  // namespace qvm::images
