#include "images/overlay.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "images/error.h"

namespace qvm::images {
namespace {

// The layout: cluster 0 holds the header, 1 the refcount table, 2 the one refcount block, 3 and
// those behind it the L1 table, which is a hole in the file: no L2 table, no data.
constexpr unsigned cluster_bits = 16;
constexpr std::uint64_t cluster_size = 1u << cluster_bits;
constexpr std::uint64_t refcount_table_offset = 1 * cluster_size;
constexpr std::uint64_t refcount_block_offset = 2 * cluster_size;
constexpr std::uint64_t l1_offset = 3 * cluster_size;
constexpr std::uint64_t bytes_per_l1_entry = cluster_size * (cluster_size / 8);
constexpr std::uint64_t max_virtual_size = (std::uint64_t{32} << 20) / 8 * bytes_per_l1_entry;

void append(std::string& out, std::uint64_t value, unsigned width) {
    while (width-- > 0) out += static_cast<char>(value >> (8 * width));
}

std::uint64_t divide_up(std::uint64_t value, std::uint64_t by) {
    return (value + by - 1) / by;
}

std::string make_header(std::uint64_t virtual_size, std::uint64_t l1_entries) {
    std::string out = "QFI\xfb";
    append(out, 3, 4);        // version
    out.append(8 + 4, '\0');  // no backing file: offset, length of the name
    append(out, cluster_bits, 4);
    append(out, virtual_size, 8);
    append(out, 0, 4);  // no encryption
    append(out, l1_entries, 4);
    append(out, l1_offset, 8);
    append(out, refcount_table_offset, 8);
    append(out, 1, 4);            // clusters of the refcount table
    out.append(4 + 8, '\0');      // no snapshots: number, offset
    out.append(8 + 8 + 8, '\0');  // feature bits: incompatible, compatible, autoclear
    append(out, 4, 4);            // refcount order: 16 bits
    append(out, 104, 4);          // length of this header
    out.append(4 + 4, '\0');      // end of header extensions
    return out;
}

void write_at(int fd, std::uint64_t offset, const std::string& bytes) {
    const auto count = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0) throw std::system_error(errno, std::generic_category(), "write the overlay");
    if (count != std::ssize(bytes)) {
        throw std::system_error(ENOSPC, std::generic_category(), "write the overlay");
    }
}

void require_empty(int fd) {
    struct stat status {};
    if (fstat(fd, &status) < 0) throw std::system_error(errno, std::generic_category(), "fstat");
    if (status.st_size != 0) throw Error("the overlay's file is not empty");
}

}  // namespace

void write_overlay(int fd, std::uint64_t virtual_size) {
    if (virtual_size == 0 || virtual_size % 512 != 0 || virtual_size > max_virtual_size) {
        throw Error("no overlay can be " + std::to_string(virtual_size) + " bytes large");
    }
    require_empty(fd);
    const auto l1_entries = divide_up(virtual_size, bytes_per_l1_entry);
    const auto clusters = 3 + divide_up(l1_entries * 8, cluster_size);
    std::string refcount_table, refcount_block;
    append(refcount_table, refcount_block_offset, 8);
    for (std::uint64_t i = 0; i < clusters; ++i) append(refcount_block, 1, 2);

    if (ftruncate(fd, static_cast<off_t>(clusters * cluster_size)) < 0) {
        throw std::system_error(errno, std::generic_category(), "write the overlay");
    }
    write_at(fd, refcount_table_offset, refcount_table);
    write_at(fd, refcount_block_offset, refcount_block);
    write_at(fd, 0, make_header(virtual_size, l1_entries));
}

}  // namespace qvm::images
