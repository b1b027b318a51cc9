#include "images/demo.h"

#include "images/boot_disk.h"
#include "images/demo_steps.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t disk_sectors = 64u << 11;  // 64 MiB

}  // namespace

void build_demo(const fs::path& output, const fs::path& package_cache, const Runner& run,
                const Progress& progress) {
    const TemporaryDirectory work(fs::temp_directory_path());
    const PendingFile pending(fs::absolute(output));

    const auto packages = download_packages(
        package_cache.empty() ? work.path() : fs::absolute(package_cache), run, progress);

    progress("building the initramfs");
    const auto tree = make_tree(packages);
    write_file(work.path() / "vmlinuz", tree.kernel);
    write_initramfs(tree.initramfs, work.path() / "initrd", Compression::zstd);

    progress("writing the disk");
    const auto raw = make_boot_disk(work.path(),
                                    {.sectors = disk_sectors,
                                     .boot_end = disk_sectors,
                                     .append = "console=ttyS0 quiet cryptomgr.notests"},
                                    run);
    convert_to_qcow2(raw, pending.path(), true, run);
    pending.commit();
}

}  // namespace qvm::images
