#include "images/contents.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <string>
#include <system_error>

#include "images/error.h"

namespace qvm::images {
namespace {

constexpr std::string_view qcow2_magic{"QFI\xfb", 4};
constexpr std::uint64_t sector_size = 512;
constexpr std::uint64_t max_offset = std::numeric_limits<std::int64_t>::max();
// QEMU's own limits: QCOW_MAX_REFTABLE_SIZE and QCOW_MAX_L1_SIZE in block/qcow2.h.
constexpr std::uint64_t max_refcount_table = 8u << 20;
constexpr std::uint64_t max_l1_table = 32u << 20;
// Refcount blocks without a cluster in use, at the end of the table, that are looked at.
constexpr int max_empty_blocks = 16;

std::uint64_t regular_file_size(int fd) {
    struct stat status {};
    if (fstat(fd, &status) < 0) throw std::system_error(errno, std::generic_category(), "fstat");
    if (!S_ISREG(status.st_mode)) throw Error("is not a regular file");
    return static_cast<std::uint64_t>(status.st_size);
}

// Up to `size` bytes; fewer where the file ends.
std::string read_at(int fd, std::uint64_t offset, std::uint64_t size) {
    if (offset > max_offset - size) return {};
    std::string bytes(size, '\0');
    std::size_t have = 0;
    while (have < size) {
        const auto count =
            pread(fd, bytes.data() + have, size - have, static_cast<off_t>(offset + have));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) throw std::system_error(errno, std::generic_category(), "read");
        if (count == 0) break;
        have += static_cast<std::size_t>(count);
    }
    bytes.resize(have);
    return bytes;
}

// All numbers in a qcow2 image are big-endian.
std::uint64_t big_endian(std::string_view bytes, std::size_t offset, std::size_t width) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
        value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
    }
    return value;
}

[[noreturn]] void damaged(const char* what) {
    throw Error(std::string("damaged qcow2 image: ") + what);
}

[[noreturn]] void truncated() {
    throw Error("truncated qcow2 image: its end is missing");
}

struct Header {
    unsigned cluster_bits;
    std::uint64_t l1_entries;
    std::uint64_t l1_offset;
    std::uint64_t refcount_table_offset;
    std::uint64_t refcount_table_clusters;
    unsigned refcount_order;  // a refcount has 2^order bits

    std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
};

// docs/interop/qcow2.txt, "Header": version 2 has 72 bytes, version 3 at least 104.
Header read_header(int fd) {
    const auto bytes = read_at(fd, 0, 104);
    if (!bytes.starts_with(qcow2_magic)) damaged("it has no header");
    if (bytes.size() < 72) truncated();
    const auto version = big_endian(bytes, 4, 4);
    if (version != 2 && version != 3) damaged("its version is neither 2 nor 3");
    if (version == 3 && bytes.size() < 104) truncated();
    Header header{
        .cluster_bits = static_cast<unsigned>(big_endian(bytes, 20, 4)),
        .l1_entries = big_endian(bytes, 36, 4),
        .l1_offset = big_endian(bytes, 40, 8),
        .refcount_table_offset = big_endian(bytes, 48, 8),
        .refcount_table_clusters = big_endian(bytes, 56, 4),
        .refcount_order = version == 3 ? static_cast<unsigned>(big_endian(bytes, 96, 4)) : 4,
    };
    if (header.cluster_bits < 9 || header.cluster_bits > 21) damaged("absurd cluster size");
    if (header.refcount_order > 6) damaged("absurd refcount width");
    if (header.l1_entries > max_l1_table / 8) damaged("absurd L1 table");
    if (header.refcount_table_clusters > max_refcount_table >> header.cluster_bits) {
        damaged("absurd refcount table");
    }
    return header;
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

void check_raw(int fd, std::uint64_t file_size, bool has_kernel) {
    struct Claim {
        std::string_view magic;
        const char* reason;
    };
    static constexpr std::array claims{
        Claim{qcow2_magic, "it is a qcow2 image, not a raw one"},
        Claim{{"\x1f\x8b", 2}, "it is compressed (gunzip it first)"},
        Claim{{"\xfd"
               "7zXZ\0",
               6},
              "it is compressed (unxz it first)"},
        Claim{{"\x28\xb5\x2f\xfd", 4}, "it is compressed (unzstd it first)"},
        Claim{{"BZh", 3}, "it is compressed (bunzip2 it first)"},
        Claim{{"PK\x03\x04", 4}, "it is a zip archive"},
        Claim{{"\x7f"
               "ELF",
               4},
              "not a disk image: it is a program"},
    };
    const auto first = read_at(fd, 0, sector_size);
    for (const auto& claim : claims) {
        if (first.starts_with(claim.magic)) throw Error(claim.reason);
    }
    if (file_size == 0) throw Error("not a disk image: it is empty");
    if (file_size % sector_size != 0 || first.size() < sector_size) {
        throw Error("not a disk image: its size is not a multiple of 512 bytes");
    }
    if (!has_kernel && !first.ends_with("\x55\xaa")) {
        throw Error("not a disk image: it has no boot signature");
    }
}

}  // namespace

void check_header(int fd) {
    constexpr std::uint64_t external_data_file = 1u << 2;  // an incompatible feature
    regular_file_size(fd);
    const auto bytes = read_at(fd, 0, 80);
    if (bytes.size() < 80 || !bytes.starts_with(qcow2_magic)) return;
    if (big_endian(bytes, 4, 4) >= 3 && big_endian(bytes, 72, 8) & external_data_file) {
        throw Error("it names a data file, and a guest could have written that");
    }
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
