#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <iterator>

#include "images/demo_steps.h"
#include "images/error.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr const char* boot_code = "/usr/lib/syslinux/mbr/mbr.bin";
constexpr std::uint32_t sector_size = 512;
constexpr std::uint32_t partition_start = 2048;    // sectors: 1 MiB
constexpr std::uint32_t disk_sectors = 64u << 11;  // 64 MiB

constexpr const char* syslinux_config =
    "SERIAL 0 115200\n"
    "DEFAULT demo\n"
    "PROMPT 0\n"
    "TIMEOUT 0\n"
    "LABEL demo\n"
    "  LINUX vmlinuz\n"
    "  INITRD initrd\n"
    "  APPEND ";

// systemd-boot's (https://uapi-group.org/specifications/specs/boot_loader_specification).
constexpr const char* loader_entry =
    "linux /vmlinuz\n"
    "initrd /initrd\n"
    "options ";

std::string kernel_options(const DemoMachine& machine) {
    return "console=" + machine.console + " quiet cryptomgr.notests\n";
}

// A master boot record with one active FAT partition over the whole disk, addressed by sector
// (https://wiki.osdev.org/MBR).
std::array<char, sector_size> boot_record(bool bios) {
    std::array<char, sector_size> record{};
    if (bios) {
        std::ifstream in(boot_code, std::ios::binary);
        if (!in) throw Error(std::string("there is no ") + boot_code);
        in.read(record.data(), 440);
    }

    const auto put32 = [&](std::size_t at, std::uint32_t value) {
        for (unsigned i = 0; i < 4; ++i) record[at + i] = static_cast<char>(value >> (8 * i));
    };
    const auto put = [&](std::size_t at, unsigned value) { record[at] = static_cast<char>(value); };
    put32(440, 0x716d7671);  // the disk's signature
    put32(446, 0xfffffe80);  // active, starts beyond what cylinder, head and sector can say
    put32(450, 0xfffffe0c);  // FAT with sector addresses, ends there too
    put32(454, partition_start);
    put32(458, disk_sectors - partition_start);
    put(510, 0x55);
    put(511, 0xaa);
    return record;
}

void write_text(const fs::path& path, std::string_view text) {
    std::ofstream out(path, std::ios::binary);
    out << text;
    out.close();
    if (!out) throw Error("cannot write " + path.string());
}

void write_empty_disk(const fs::path& path, bool bios) {
    const auto record = boot_record(bios);
    write_text(path, {record.data(), record.size()});
    fs::resize_file(path, std::uintmax_t{disk_sectors} * sector_size);
}

}  // namespace

fs::path make_disk(const fs::path& directory, const DemoMachine& machine, const Runner& run) {
    const fs::path disk = directory / "disk.raw";
    write_empty_disk(disk, machine.bios);
    // Where UEFI looks on a disk that it has no boot entry for.
    const auto boot = directory / "EFI" / "BOOT", entries = directory / "loader" / "entries";
    fs::create_directories(boot);
    fs::create_directories(entries);
    fs::rename(directory / "loader.efi", boot / ("boot" + machine.efi + ".efi"));
    write_text(entries / "demo.conf", loader_entry + kernel_options(machine));

    const auto offset = std::to_string(partition_start * sector_size);
    const auto partition = disk.string() + "@@" + offset;
    const auto step = [&](std::vector<std::string> argv) {
        // A fixed time in the FAT's entries: the same files give the same disk.
        argv.insert(argv.begin(), {"env", "SOURCE_DATE_EPOCH=1000000000", "TZ=UTC"});
        run_step(run, {.argv = std::move(argv), .directory = directory},
                 "cannot write the disk's file system");
    };
    step({"mformat", "-i", partition, "-T", std::to_string(disk_sectors - partition_start), "-h",
          "255", "-s", "63", "-H", std::to_string(partition_start), "-N", "716d7671", "::"});
    step({"mcopy", "-s", "-i", partition, "vmlinuz", "initrd", "EFI", "loader", "::"});
    if (!machine.bios) return disk;
    write_text(directory / "syslinux.cfg", syslinux_config + kernel_options(machine));
    step({"mcopy", "-i", partition, "syslinux.cfg", "::"});
    step({"syslinux", "--install", "--offset", offset, disk.string()});
    return disk;
}

}  // namespace qvm::images
