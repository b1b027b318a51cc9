#include "images/contents.h"

#include <array>
#include <string>
#include <string_view>

#include "images/bytes.h"
#include "images/error.h"
#include "images/foreign.h"

namespace qvm::images {
namespace {

constexpr std::string_view qcow2_magic{"QFI\xfb", 4};
constexpr std::uint64_t sector_size = 512;
// QEMU's own limits: QCOW_MAX_REFTABLE_SIZE, QCOW_MAX_L1_SIZE and QCOW_MAX_SNAPSHOTS in
// block/qcow2.h, and the length of a backing file's name.
constexpr std::uint64_t max_refcount_table = 8u << 20;
constexpr std::uint64_t max_l1_table = 32u << 20;
constexpr std::uint64_t max_snapshots = 65536;
constexpr std::uint64_t max_name = 1023;
// Refcount blocks without a cluster in use, at the end of the table, that are looked at.
constexpr int max_empty_blocks = 16;

[[noreturn]] void damaged(const char* what) {
    throw Error(std::string("damaged qcow2 image: ") + what);
}

[[noreturn]] void truncated() {
    throw Error("truncated qcow2 image: its end is missing");
}

struct Header {
    std::uint64_t backing_offset;
    std::uint64_t backing_length;
    unsigned cluster_bits;
    std::uint64_t virtual_size;
    std::uint64_t encryption;
    std::uint64_t l1_entries;
    std::uint64_t l1_offset;
    std::uint64_t refcount_table_offset;
    std::uint64_t refcount_table_clusters;
    std::uint64_t snapshots;
    std::uint64_t snapshots_offset;
    std::uint64_t incompatible;  // feature bits
    unsigned refcount_order;     // a refcount has 2^order bits
    std::uint64_t length;

    std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
};

// Incompatible features.
constexpr std::uint64_t external_data_file = 1u << 2;
constexpr std::uint64_t extended_l2 = 1u << 4;
constexpr std::uint64_t known_features = 0x1f;

// docs/interop/qcow2.txt, "Header": version 2 has 72 bytes, version 3 at least 104.
Header read_header(int fd) {
    const auto bytes = read_at(fd, 0, 104);
    if (!bytes.starts_with(qcow2_magic)) damaged("it has no header");
    if (bytes.size() < 72) truncated();
    const auto version = big_endian(bytes, 4, 4);
    if (version != 2 && version != 3) damaged("its version is neither 2 nor 3");
    if (version == 3 && bytes.size() < 104) truncated();
    Header header{
        .backing_offset = big_endian(bytes, 8, 8),
        .backing_length = big_endian(bytes, 16, 4),
        .cluster_bits = static_cast<unsigned>(big_endian(bytes, 20, 4)),
        .virtual_size = big_endian(bytes, 24, 8),
        .encryption = big_endian(bytes, 32, 4),
        .l1_entries = big_endian(bytes, 36, 4),
        .l1_offset = big_endian(bytes, 40, 8),
        .refcount_table_offset = big_endian(bytes, 48, 8),
        .refcount_table_clusters = big_endian(bytes, 56, 4),
        .snapshots = big_endian(bytes, 60, 4),
        .snapshots_offset = big_endian(bytes, 64, 8),
        .incompatible = version == 3 ? big_endian(bytes, 72, 8) : 0,
        .refcount_order = version == 3 ? static_cast<unsigned>(big_endian(bytes, 96, 4)) : 4,
        .length = version == 3 ? big_endian(bytes, 100, 4) : 72,
    };
    if (header.cluster_bits < 9 || header.cluster_bits > 21) damaged("absurd cluster size");
    if (header.length < (version == 3 ? 104u : 72u) || header.length > header.cluster_size()) {
        damaged("absurd length of its header");
    }
    if (header.refcount_order > 6) damaged("absurd refcount width");
    if (header.l1_entries > max_l1_table / 8) damaged("absurd L1 table");
    if (header.refcount_table_clusters > max_refcount_table >> header.cluster_bits) {
        damaged("absurd refcount table");
    }
    if (header.snapshots > max_snapshots) damaged("absurd number of snapshots");
    return header;
}

// What QEMU would open besides the image, or cannot open at all.
void check_demands(int fd, const Header& header, bool trust_backing) {
    if ((header.incompatible & external_data_file) != 0) {
        throw Error("it names a data file, and a guest could have written that");
    }
    if ((header.incompatible & ~known_features) != 0) {
        throw Error("it has features that are unknown here");
    }
    if (header.encryption != 0) throw Error("encrypted images are not supported");
    if (header.backing_offset == 0) return;
    if (header.backing_length > max_name ||
        !is_within(header.backing_offset, header.backing_length, header.cluster_size())) {
        damaged("absurd backing file name");
    }
    const auto name = read_at(fd, header.backing_offset, header.backing_length);
    if (name.size() < header.backing_length) truncated();
    check_backing_name(name, trust_backing);
}

// Sizes that its tables have room for, at places where they can be.
void check_numbers(const Header& header, std::uint64_t file_size) {
    const auto entry_size = (header.incompatible & extended_l2) != 0 ? 16u : 8u;
    const auto bytes_per_l1_entry = header.cluster_size() * (header.cluster_size() / entry_size);
    const auto check_table = [&](const char* what, std::uint64_t offset, std::uint64_t size) {
        if (offset % header.cluster_size() != 0 || offset > max_offset) damaged(what);
        if (!is_within(offset, size, file_size)) truncated();
    };
    if (header.virtual_size == 0) throw Error("not a disk image: it is empty");
    if (header.virtual_size > max_offset ||
        (header.virtual_size - 1) / bytes_per_l1_entry >= header.l1_entries) {
        damaged("its L1 table is too small for its size");
    }
    if (header.refcount_table_clusters == 0) damaged("it has no refcount table");
    check_table("absurd L1 table", header.l1_offset, header.l1_entries * 8);
    check_table("absurd refcount table", header.refcount_table_offset,
                header.refcount_table_clusters << header.cluster_bits);
    if (header.snapshots == 0) return;
    constexpr std::uint64_t least_of_snapshot = 40;
    check_table("absurd table of snapshots", header.snapshots_offset,
                header.snapshots * least_of_snapshot);
}

std::string read_whole(int fd, std::uint64_t offset, std::uint64_t size) {
    auto bytes = read_at(fd, offset, size);
    if (bytes.size() < size) truncated();
    return bytes;
}

// The number of the last refcount in a block that is not zero, plus one; 0 if all are.
std::uint64_t used_in_block(std::string_view block, unsigned refcount_order) {
    const auto last = block.find_last_not_of('\0');
    if (last == block.npos) return 0;
    const auto bits = std::uint64_t{8} * last;
    if (refcount_order >= 3) return (bits >> refcount_order) + 1;
    // Several refcounts share the byte, the first one in its lowest bits.
    const auto byte = static_cast<unsigned char>(block[last]);
    unsigned top = 7;
    while (!(byte >> top & 1)) --top;
    return ((bits + top) >> refcount_order) + 1;
}

// The number of clusters up to the last one in use.
std::uint64_t used_clusters(int fd, const Header& header) {
    const auto table = read_whole(fd, header.refcount_table_offset,
                                  header.refcount_table_clusters << header.cluster_bits);
    const auto block_entries = header.cluster_size() * 8 >> header.refcount_order;
    int empty_blocks = 0;
    for (auto i = table.size() / 8; i-- > 0 && empty_blocks < max_empty_blocks;) {
        const auto block_offset = big_endian(table, i * 8, 8);
        if (block_offset == 0) continue;
        const auto block = read_whole(fd, block_offset, header.cluster_size());
        const auto used = used_in_block(block, header.refcount_order);
        if (used > 0) return i * block_entries + used;
        ++empty_blocks;
    }
    return 0;
}

// The cluster of an L2 table may be the image's last, and is always written as a whole.
void check_l2_tables(int fd, const Header& header, std::uint64_t file_size) {
    constexpr std::uint64_t offset_mask = 0x00fffffffffffe00;
    const auto l1 = read_whole(fd, header.l1_offset, header.l1_entries * 8);
    for (std::size_t at = 0; at + 8 <= l1.size(); at += 8) {
        const auto l2_offset = big_endian(l1, at, 8) & offset_mask;
        if (l2_offset != 0 && l2_offset + header.cluster_size() > file_size) truncated();
    }
}

void check_qcow2(int fd, std::uint64_t file_size) {
    const auto header = read_header(fd);
    const auto used = used_clusters(fd, header);
    if (used > max_offset >> header.cluster_bits) {
        damaged("absurd refcount table");
    }
    // QEMU may leave the last cluster's end unwritten, but not all of it.
    if (used > 0 && file_size <= (used - 1) << header.cluster_bits) truncated();
    check_l2_tables(fd, header, file_size);
}

std::string format_of(std::string_view first) {
    struct Format {
        std::string_view magic;
        const char* name;
        std::size_t offset = 0;
    };
    static constexpr std::array formats{
        Format{qcow2_magic, "qcow2"},
        Format{"KDMV", "vmdk"},
        Format{"COWD", "vmdk"},
        Format{"# Disk DescriptorFile", "vmdk"},
        Format{"\x7f\x10\xda\xbe", "vdi", 0x40},
        Format{"vhdxfile", "vhdx"},
        Format{"conectix", "vpc"},
        Format{{"QED\0", 4}, "qed"},
        Format{"WithoutFreeSpace", "parallels"},
        Format{"WithouFreSpacExt", "parallels"},
    };
    for (const auto& format : formats) {
        if (first.size() < format.offset) continue;
        if (first.substr(format.offset).starts_with(format.magic)) return format.name;
    }
    return "raw";
}

bool has_boot_signature(std::string_view first) {
    return first.size() == sector_size && first.ends_with("\x55\xaa");
}

void check_raw(int fd, std::uint64_t file_size, bool has_kernel) {
    struct Claim {
        std::string_view magic;
        const char* reason;
        std::size_t offset = 0;
    };
    static constexpr std::array claims{
        Claim{qcow2_magic, "it is a qcow2 image, not a raw one"},
        Claim{{"\x1f\x8b", 2}, "it is compressed (qvm image import unpacks it)"},
        Claim{{"\xfd"
               "7zXZ\0",
               6},
              "it is compressed (qvm image import unpacks it)"},
        Claim{{"\x28\xb5\x2f\xfd", 4}, "it is compressed (qvm image import unpacks it)"},
        Claim{{"BZh", 3}, "it is compressed (bunzip2 it first)"},
        Claim{{"PK\x03\x04", 4}, "it is a zip archive (unzip it, and import the disk in it)"},
        Claim{"ustar", "it is a tar archive, as an OVA is (tar -xf it, and import the disk in it)",
              257},
        Claim{{"\x7f"
               "ELF",
               4},
              "not a disk image: it is a program"},
    };
    const auto first = read_at(fd, 0, sector_size);
    for (const auto& claim : claims) {
        if (first.size() < claim.offset) continue;
        if (first.substr(claim.offset).starts_with(claim.magic)) throw Error(claim.reason);
    }
    if (file_size == 0) throw Error("not a disk image: it is empty");
    if (file_size % sector_size != 0 || first.size() < sector_size) {
        throw Error("not a disk image: its size is not a multiple of 512 bytes");
    }
    if (has_kernel || has_boot_signature(first)) return;
    check_no_cd(fd);
    throw Error("not a disk image: it has no boot signature");
}

}  // namespace

std::string check_header(int fd, bool trust_backing) {
    const auto file_size = regular_file_size(fd);
    const auto format = format_of(read_at(fd, 0, sector_size));
    if (format == "qcow2") {
        const auto header = read_header(fd);
        check_demands(fd, header, trust_backing);
        check_numbers(header, file_size);
    } else if (format != "raw") {
        check_foreign_header(fd, format);
    }
    return format;
}

bool is_whole_disk(std::string_view first) {
    const auto format = format_of(first);
    constexpr std::size_t backing_offset = 8;
    if (format == "qcow2" && first.size() >= backing_offset + 8) {
        return big_endian(first, backing_offset, 8) == 0;
    }
    return format == "qcow2" || format == "raw";
}

void check_no_cd(int fd) {
    constexpr std::string_view magic = "CD001";
    if (read_at(fd, 16 * 2048 + 1, magic.size()) != magic) return;
    if (has_boot_signature(read_at(fd, 0, sector_size))) return;
    throw Error("it is the image of a CD, not of a disk (--drive FILE:ro gives it to a guest)");
}

void check_contents(int fd, const ImageInfo& info, bool has_kernel) {
    const auto file_size = regular_file_size(fd);
    if (info.format == "qcow2") {
        check_qcow2(fd, file_size);
    } else {
        check_raw(fd, file_size, has_kernel);
    }
}

}  // namespace qvm::images
