#include "images/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <string_view>
#include <system_error>

#include "images/bytes.h"
#include "images/error.h"
#include "images/sparse.h"

namespace qvm::images {
namespace {

constexpr std::array<std::string_view, 3> magics{
    std::string_view{"\x1f\x8b", 2},                // gzip
    std::string_view{"\xfd\x37\x7a\x58\x5a\0", 6},  // xz
    std::string_view{"\x28\xb5\x2f\xfd", 4},        // zstd
};
// What a small file may unpack to, and beyond that how many times its size.
constexpr std::uint64_t always_allowed = std::uint64_t{1} << 30;
constexpr std::uint64_t most_ratio = 4096;
constexpr std::size_t block_size = 256 * 1024;

struct Close {
    void operator()(archive* reader) const { archive_read_free(reader); }
};
using Reader = std::unique_ptr<archive, Close>;

[[noreturn]] void damaged(archive* reader) {
    const char* why = archive_error_string(reader);
    throw Error(std::string("it cannot be unpacked: ") + (why ? why : "it is damaged"));
}

// At what is in the file; nothing where that is empty.
Reader open_packed(int fd) {
    if (lseek(fd, 0, SEEK_SET) < 0) throw std::system_error(errno, std::generic_category(), "seek");
    Reader reader{archive_read_new()};
    if (!reader) throw std::bad_alloc();
    archive_read_support_filter_gzip(reader.get());
    archive_read_support_filter_xz(reader.get());
    archive_read_support_filter_zstd(reader.get());
    archive_read_support_format_raw(reader.get());
    archive_read_support_format_empty(reader.get());
    archive_entry* entry = nullptr;
    if (archive_read_open_fd(reader.get(), fd, block_size) != ARCHIVE_OK) damaged(reader.get());
    const int status = archive_read_next_header(reader.get(), &entry);
    // What no filter knows would come through as it is.
    if (archive_filter_count(reader.get()) < 2) throw Error("it cannot be unpacked: it is damaged");
    if (status == ARCHIVE_EOF) return nullptr;
    if (status != ARCHIVE_OK) damaged(reader.get());
    return reader;
}

// The next piece; empty at the end.
std::string_view next_piece(archive* reader) {
    const void* bytes = nullptr;
    std::size_t size = 0;
    la_int64_t offset = 0;
    for (;;) {
        const int status = archive_read_data_block(reader, &bytes, &size, &offset);
        if (status == ARCHIVE_EOF) return {};
        if (status != ARCHIVE_OK) damaged(reader);
        if (size > 0) return {static_cast<const char*>(bytes), size};
    }
}

}  // namespace

bool is_packed(int fd) {
    const auto first = read_at(fd, 0, 8);
    for (const auto& magic : magics) {
        if (first.starts_with(magic)) return true;
    }
    return false;
}

std::string first_unpacked(int fd, std::size_t size) {
    std::string first;
    const auto reader = open_packed(fd);
    while (reader && first.size() < size) {
        const auto piece = next_piece(reader.get());
        if (piece.empty()) break;
        first += piece.substr(0, size - first.size());
    }
    return first;
}

void unpack(int from, int to, const Headway& headway) {
    const auto packed_size = regular_file_size(from);
    const auto most = always_allowed + most_ratio * packed_size;
    const auto reader = open_packed(from);
    std::uint64_t size = 0;
    while (reader) {
        const auto piece = next_piece(reader.get());
        if (piece.empty()) break;
        write_sparse(to, piece, size);
        size += piece.size();
        if (size > most) throw Error("it unpacks to more than any disk would");
        if (headway && packed_size > 0) {
            const auto read = archive_filter_bytes(reader.get(), -1);
            headway(static_cast<double>(read) / static_cast<double>(packed_size));
        }
    }
    if (ftruncate(to, static_cast<off_t>(size)) < 0) {
        throw std::system_error(errno, std::generic_category(), "set the size");
    }
}

}  // namespace qvm::images
