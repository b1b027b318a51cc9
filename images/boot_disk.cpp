#include "images/boot_disk.h"

#include <array>
#include <fstream>
#include <string_view>
#include <vector>

#include "images/error.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t sector_size = 512;
constexpr std::uint32_t boot_start = 2048;  // sectors: 1 MiB

// A master boot record: an active FAT partition, and a Linux one behind it where there is room,
// addressed by sector (https://wiki.osdev.org/MBR).
std::array<char, sector_size> boot_record(const BootDisk& disk) {
    std::array<char, sector_size> record{};
    if (disk.bios) {
        std::ifstream in(boot_code, std::ios::binary);
        if (!in) throw Error(std::string("there is no ") + boot_code);
        in.read(record.data(), 440);
    }

    const auto put32 = [&](std::size_t at, std::uint32_t value) {
        for (unsigned i = 0; i < 4; ++i) record[at + i] = static_cast<char>(value >> (8 * i));
    };
    const auto put = [&](std::size_t at, unsigned value) { record[at] = static_cast<char>(value); };
    // Starts and ends beyond what cylinder, head and sector can say.
    const auto put_partition = [&](std::size_t at, unsigned active, unsigned type,
                                   std::uint32_t start, std::uint32_t end) {
        put32(at, 0xfffffe00 | active);
        put32(at + 4, 0xfffffe00 | type);
        put32(at + 8, start);
        put32(at + 12, end - start);
    };
    put32(440, 0x716d7671);  // the disk's signature
    put_partition(446, 0x80, 0x0c, boot_start, disk.boot_end);
    if (disk.sectors > disk.boot_end) put_partition(462, 0, 0x83, disk.boot_end, disk.sectors);
    put(510, 0x55);
    put(511, 0xaa);
    return record;
}

// On a busy host without KVM the timer of a PC comes late, and the kernel takes it for broken
// (arch/x86/kernel/apic/io_apic.c: timer_irq_works()); QEMU's is not.
std::string kernel_options(const BootDisk& spec) {
    return spec.append + (spec.bios ? " no_timer_check" : "");
}

void write_text(const fs::path& path, std::string_view text) {
    std::ofstream out(path, std::ios::binary);
    out << text;
    out.close();
    if (!out) throw Error("cannot write " + path.string());
}

std::string syslinux_config(const std::string& append) {
    return "SERIAL 0 115200\n"
           "DEFAULT linux\n"
           "PROMPT 0\n"
           "TIMEOUT 0\n"
           "LABEL linux\n"
           "  LINUX vmlinuz\n"
           "  INITRD initrd\n"
           "  APPEND " +
           append + "\n";
}

// Systemd-boot's (https://uapi-group.org/specifications/specs/boot_loader_specification).
std::string loader_entry(const std::string& append) {
    return "linux /vmlinuz\n"
           "initrd /initrd\n"
           "options " +
           append + "\n";
}

// Where UEFI looks on a disk that it has no boot entry for. Returns the directories' names.
std::vector<std::string> add_loader(const fs::path& directory, const BootDisk& spec) {
    const auto boot = directory / "EFI" / "BOOT", entries = directory / "loader" / "entries";
    fs::create_directories(boot);
    fs::create_directories(entries);
    fs::rename(directory / "loader.efi", boot / ("boot" + spec.efi + ".efi"));
    write_text(entries / "linux.conf", loader_entry(kernel_options(spec)));
    return {"EFI", "loader"};
}

}  // namespace

fs::path make_boot_disk(const fs::path& directory, const BootDisk& spec, const Runner& run) {
    const fs::path disk = directory / "disk.raw";
    const auto record = boot_record(spec);
    write_text(disk, {record.data(), record.size()});
    fs::resize_file(disk, std::uintmax_t{spec.sectors} * sector_size);
    std::vector<std::string> files{"vmlinuz", "initrd"};
    if (spec.bios) {
        write_text(directory / "syslinux.cfg", syslinux_config(kernel_options(spec)));
        files.emplace_back("syslinux.cfg");
    }
    if (!spec.efi.empty())
        for (auto& name : add_loader(directory, spec)) files.push_back(std::move(name));

    const auto offset = std::to_string(boot_start * sector_size);
    const auto partition = disk.string() + "@@" + offset;
    const auto step = [&](std::vector<std::string> argv) {
        // A fixed time in the FAT's entries: the same files give the same disk.
        argv.insert(argv.begin(), {"env", "SOURCE_DATE_EPOCH=1000000000", "TZ=UTC"});
        run_step(run, {.argv = std::move(argv), .directory = directory},
                 "cannot write the disk's file system");
    };
    step({"mformat", "-i", partition, "-T", std::to_string(spec.boot_end - boot_start), "-h", "255",
          "-s", "63", "-H", std::to_string(boot_start), "-N", "716d7671", "::"});
    std::vector<std::string> copy{"mcopy", "-s", "-i", partition};
    copy.insert(copy.end(), files.begin(), files.end());
    copy.emplace_back("::");
    step(std::move(copy));
    if (spec.bios) step({"syslinux", "--install", "--offset", offset, disk.string()});
    return disk;
}

}  // namespace qvm::images
