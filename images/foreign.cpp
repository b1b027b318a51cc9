#include "images/foreign.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "images/bytes.h"
#include "images/error.h"

namespace qvm::images {
namespace {

constexpr std::uint64_t sector_size = 512;

// One image: what its messages call it, and what they are about.
struct Disk {
    int fd;
    std::uint64_t file_size;
    const char* name;

    [[noreturn]] void damaged(const char* what) const {
        throw Error(std::string("damaged ") + name + " image: " + what);
    }
    [[noreturn]] void has_parent() const {
        throw Error(std::string("it is what differs from another ") + name +
                    " image, its parent, and a guest could have written that");
    }
    [[noreturn]] void truncated() const {
        throw Error(std::string("truncated ") + name + " image: its end is missing");
    }
    // All of `size` bytes at `offset`.
    [[nodiscard]] std::string read(std::uint64_t offset, std::uint64_t size) const {
        auto bytes = is_within(offset, size, file_size) ? read_at(fd, offset, size) : std::string{};
        if (bytes.size() < size) truncated();
        return bytes;
    }
    void check_room(const char* what, std::uint64_t offset, std::uint64_t size) const {
        if (!is_within(offset, size, file_size)) damaged(what);
    }
};

std::uint64_t divide_up(std::uint64_t value, std::uint64_t by) {
    return value / by + (value % by != 0 ? 1 : 0);
}

// --- VMDK ----------------------------------------------------------------------------------------

constexpr std::string_view vmdk_magic = "KDMV";
constexpr std::uint64_t directory_at_end = ~std::uint64_t{0};

void check_vmdk_numbers(const Disk& disk, std::string_view header) {
    if (!header.starts_with(vmdk_magic)) disk.damaged("it has no header");
    const auto version = little_endian(header, 4, 4);
    const auto capacity = little_endian(header, 12, 8);
    const auto grain = little_endian(header, 20, 8);
    const auto entries = little_endian(header, 44, 4);
    if (version == 0 || version > 3) disk.damaged("its version is none of 1 to 3");
    if (capacity == 0 || capacity > max_offset / sector_size) disk.damaged("absurd size");
    if (grain == 0 || grain > 1u << 21) disk.damaged("absurd grain size");
    if (entries == 0 || entries > 512) disk.damaged("absurd grain tables");
    const auto directory = little_endian(header, 56, 8);
    if (directory == directory_at_end) return;
    if (directory > max_offset / sector_size) disk.damaged("absurd grain directory");
    disk.check_room("absurd grain directory", directory * sector_size,
                    divide_up(capacity, grain * entries) * 4);
}

// The value of `key="value"` in a descriptor.
std::string_view value_in(std::string_view descriptor, std::string_view key) {
    const auto at = descriptor.find(key);
    if (at == descriptor.npos) return {};
    descriptor.remove_prefix(at + key.size());
    return descriptor.substr(0, descriptor.find_first_of("\"\r\n"));
}

void check_vmdk(const Disk& disk) {
    if (read_at(disk.fd, 0, vmdk_magic.size()) != vmdk_magic) {
        throw Error("its data is in other files, which a VMDK without data of its own names");
    }
    const auto header = disk.read(0, sector_size);
    check_vmdk_numbers(disk, header);
    // QEMU looks for the parent's name here, wherever the header says that the descriptor is.
    if (little_endian(header, 28, 8) != 1) disk.damaged("absurd place of its descriptor");
    constexpr std::uint64_t descriptor_size = 20 * sector_size;
    const auto descriptor = read_at(disk.fd, sector_size, descriptor_size);
    if (descriptor.find("parentFileNameHint") != descriptor.npos) disk.has_parent();
    const auto type = value_in(descriptor, "createType=\"");
    if (type != "monolithicSparse" && type != "streamOptimized") {
        throw Error(
            "of VMDK images, only those of type monolithicSparse and streamOptimized are "
            "supported");
    }
    if (little_endian(header, 56, 8) != directory_at_end) return;
    // The header that counts is in the last sector but one.
    if (disk.file_size % sector_size != 0 || disk.file_size < 4 * sector_size) disk.truncated();
    const auto footer = disk.read(disk.file_size - 2 * sector_size, sector_size);
    if (!footer.starts_with(vmdk_magic)) disk.truncated();
    if (little_endian(footer, 56, 8) == directory_at_end) disk.damaged("absurd grain directory");
    check_vmdk_numbers(disk, footer);
}

// --- VDI -----------------------------------------------------------------------------------------

void check_vdi(const Disk& disk) {
    constexpr std::uint64_t block_size = 1u << 20;
    const auto header = disk.read(0, sector_size);
    const auto type = little_endian(header, 0x4c, 4);
    const auto is_linked = [&](std::size_t uuid) {
        return header.find_first_not_of('\0', uuid) < uuid + 16;
    };
    if (little_endian(header, 0x44, 4) != 0x00010001) disk.damaged("its version is not 1.1");
    if (type == 4 || is_linked(0x1a8) || is_linked(0x1b8)) disk.has_parent();
    if (type != 1 && type != 2) disk.damaged("its type is neither dynamic nor static");
    const auto size = little_endian(header, 0x170, 8);
    const auto blocks = little_endian(header, 0x180, 4);
    if (little_endian(header, 0x168, 4) != sector_size) disk.damaged("absurd sector size");
    if (little_endian(header, 0x178, 4) != block_size) disk.damaged("absurd block size");
    if (size == 0 || size > blocks * block_size) disk.damaged("absurd size");
    disk.check_room("absurd block map", little_endian(header, 0x154, 4), blocks * 4);
    // QEMU would read zeros.
    const auto data_size = little_endian(header, 0x184, 4) * block_size;
    if (!is_within(little_endian(header, 0x158, 4), data_size, disk.file_size)) disk.truncated();
}

// --- VHDX ----------------------------------------------------------------------------------------

// GUIDs as they stand in the file.
using Guid = std::string_view;
constexpr Guid block_table{"\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a\x08", 16};
constexpr Guid metadata{"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e", 16};
constexpr Guid file_parameters{"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b",
                               16};
constexpr Guid disk_size{"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8", 16};
constexpr Guid parent_locator{"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c",
                              16};

struct Region {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
};

// The one entry of `count`, of 32 bytes each, whose GUID that is.
Region find_entry(const Disk& disk, std::string_view entries, std::size_t count, Guid guid,
                  std::size_t offset_width) {
    constexpr std::size_t entry_size = 32;
    Region found;
    for (std::size_t i = 0; i < count; ++i) {
        const auto entry = entries.substr(i * entry_size, entry_size);
        if (!entry.starts_with(guid)) continue;
        if (found.length != 0) disk.damaged("it has a table twice");
        found = {little_endian(entry, 16, offset_width),
                 little_endian(entry, 16 + offset_width, 4)};
    }
    return found;
}

void check_vhdx(const Disk& disk) {
    constexpr std::uint64_t region_table = 192 * 1024;
    constexpr std::uint64_t table_size = 64 * 1024;
    constexpr std::uint64_t most_entries = 2047;
    constexpr std::uint64_t largest = std::uint64_t{64} << 40;

    const auto regions = disk.read(region_table, table_size);
    const auto region_count = little_endian(regions, 8, 4);
    if (!regions.starts_with("regi") || region_count > most_entries) {
        disk.damaged("absurd region table");
    }
    const auto region = [&](Guid guid) {
        return find_entry(disk, std::string_view{regions}.substr(16), region_count, guid, 8);
    };
    const auto table = region(block_table);
    const auto items_at = region(metadata);
    if (table.length == 0 || items_at.length < table_size) disk.damaged("absurd region table");
    disk.check_room("absurd block table", table.offset, table.length);
    disk.check_room("absurd metadata", items_at.offset, items_at.length);

    const auto items = disk.read(items_at.offset, table_size);
    const auto item_count = little_endian(items, 10, 2);
    if (!items.starts_with("metadata") || item_count > most_entries) {
        disk.damaged("absurd metadata");
    }
    const auto item = [&](Guid guid) {
        return find_entry(disk, std::string_view{items}.substr(32), item_count, guid, 4);
    };
    const auto value = [&](Guid guid) {
        const auto at = item(guid);
        if (at.length < 8 || !is_within(at.offset, 8, items_at.length)) {
            disk.damaged("absurd metadata");
        }
        return disk.read(items_at.offset + at.offset, 8);
    };
    const auto parameters = value(file_parameters);
    constexpr std::uint64_t has_parent = 2;
    if ((little_endian(parameters, 4, 4) & has_parent) != 0 || item(parent_locator).length != 0) {
        disk.has_parent();
    }
    const auto block_size = little_endian(parameters, 0, 4);
    if (!std::has_single_bit(block_size) || block_size < 1u << 20 || block_size > 256u << 20) {
        disk.damaged("absurd block size");
    }
    const auto size = little_endian(value(disk_size), 0, 8);
    if (size == 0 || size > largest) disk.damaged("absurd size");
    if (divide_up(size, block_size) > table.length / 8) disk.damaged("absurd block table");
}

// --- VHD -----------------------------------------------------------------------------------------

void check_vhd(const Disk& disk) {
    constexpr std::uint64_t differencing = 4;
    constexpr std::uint64_t largest = std::uint64_t{2040} << 30;
    const auto footer = disk.read(0, sector_size);  // a copy of it
    const auto type = big_endian(footer, 60, 4);
    if (type == differencing) disk.has_parent();
    if (type != 3) disk.damaged("its type is not dynamic");
    const auto size = big_endian(footer, 48, 8);
    if (size == 0 || size > largest) disk.damaged("absurd size");

    const auto header = disk.read(big_endian(footer, 16, 8), sector_size);
    if (!header.starts_with("cxsparse")) disk.damaged("it has no header");
    const auto entries = big_endian(header, 28, 4);
    const auto block_size = big_endian(header, 32, 4);
    if (!std::has_single_bit(block_size) || block_size < sector_size) {
        disk.damaged("absurd block size");
    }
    if (divide_up(size, block_size) > entries) disk.damaged("absurd size");
    disk.check_room("absurd block table", big_endian(header, 16, 8), entries * 4);
}

}  // namespace

void check_foreign_header(int fd, const std::string& format) {
    const auto disk = [&](const char* name) { return Disk{fd, regular_file_size(fd), name}; };
    if (format == "vmdk") return check_vmdk(disk("VMDK"));
    if (format == "vdi") return check_vdi(disk("VDI"));
    if (format == "vhdx") return check_vhdx(disk("VHDX"));
    if (format == "vpc") return check_vhd(disk("VHD"));
    throw Error("its format is " + format + ", which is not supported");
}

}  // namespace qvm::images
