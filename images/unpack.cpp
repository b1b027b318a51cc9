#include "images/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>
#include <system_error>
#include <vector>

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
constexpr std::size_t block_size = 256 * 1024;

struct Close {
    void operator()(archive* reader) const { archive_read_free(reader); }
};
using Reader = std::unique_ptr<archive, Close>;

// What is in a packed file, piece by piece.
class Unpacking {
  public:
    // At what is in the file, which is borrowed.
    explicit Unpacking(int fd) : fd_(fd), reader_(archive_read_new()) {
        if (lseek(fd, 0, SEEK_SET) < 0) {
            throw std::system_error(errno, std::generic_category(), "seek");
        }
        auto* reader = reader_.get();
        if (!reader) throw std::bad_alloc();
        archive_read_support_filter_gzip(reader);
        archive_read_support_filter_xz(reader);
        archive_read_support_filter_zstd(reader);
        archive_read_support_format_raw(reader);
        archive_read_support_format_empty(reader);
        archive_entry* entry = nullptr;
        if (archive_read_open(reader, this, nullptr, read_block, nullptr) != ARCHIVE_OK) fail();
        const int status = archive_read_next_header(reader, &entry);
        is_empty_ = status == ARCHIVE_EOF;
        // What no filter knows would come through as it is.
        if ((status != ARCHIVE_OK && !is_empty_) || archive_filter_count(reader) < 2) fail();
    }
    Unpacking(const Unpacking&) = delete;
    Unpacking& operator=(const Unpacking&) = delete;

    // The next piece; empty at the end.
    std::string_view next() {
        const void* bytes = nullptr;
        std::size_t size = 0;
        la_int64_t offset = 0;
        while (!is_empty_) {
            const int status = archive_read_data_block(reader_.get(), &bytes, &size, &offset);
            if (status == ARCHIVE_EOF) break;
            if (status != ARCHIVE_OK) fail();
            if (size > 0) return {static_cast<const char*>(bytes), size};
        }
        return {};
    }

    // How much of the file was read for that.
    [[nodiscard]] double bytes_read() const {
        return static_cast<double>(archive_filter_bytes(reader_.get(), -1));
    }

  private:
    static la_ssize_t read_block(archive* reader, void* self, const void** block) {
        auto& unpacking = *static_cast<Unpacking*>(self);
        auto& buffer = unpacking.buffer_;
        const auto size = read(unpacking.fd_, buffer.data(), buffer.size());
        if (size < 0) archive_set_error(reader, errno, "%s", strerror(errno));
        unpacking.has_ended_ = size == 0;
        *block = buffer.data();
        return size;
    }

    [[noreturn]] void fail() const {
        const char* why = archive_error_string(reader_.get());
        // Each filter has its own words for that, or none.
        if (has_ended_) why = "it is cut off, its end is missing";
        throw Error(std::string("it cannot be unpacked: ") + (why ? why : "it is damaged"));
    }

    int fd_;
    std::vector<char> buffer_ = std::vector<char>(block_size);
    bool has_ended_ = false;  // more was asked of the file than it has
    bool is_empty_ = false;
    Reader reader_;
};

}  // namespace

bool is_packed(int fd) {
    const auto first = read_at(fd, 0, 8);
    for (const auto& magic : magics) {
        if (first.starts_with(magic)) return true;
    }
    return false;
}

std::string first_unpacked(int fd, std::size_t size) {
    Unpacking unpacking{fd};
    std::string first;
    while (first.size() < size) {
        const auto piece = unpacking.next();
        if (piece.empty()) break;
        first += piece.substr(0, size - first.size());
    }
    return first;
}

bool is_bomb(std::uint64_t packed, std::uint64_t size, std::uint64_t data) {
    constexpr std::uint64_t always_allowed = std::uint64_t{1} << 30;
    constexpr std::uint64_t most_data = 4096;
    constexpr std::uint64_t most = 32768;  // a block of zstd's is 128 KiB, and takes 4 bytes
    return data > always_allowed + most_data * packed || size > always_allowed + most * packed;
}

void unpack(int from, int to, const Headway& headway) {
    const auto packed_size = regular_file_size(from);
    Unpacking unpacking{from};
    std::uint64_t size = 0, data = 0;
    for (std::string_view piece; !(piece = unpacking.next()).empty();) {
        data += write_sparse(to, piece, size);
        size += piece.size();
        if (is_bomb(packed_size, size, data)) throw Error("it unpacks to more than any disk would");
        if (headway) headway(unpacking.bytes_read() / static_cast<double>(packed_size));
    }
    if (ftruncate(to, static_cast<off_t>(size)) < 0) {
        throw std::system_error(errno, std::generic_category(), "set the size");
    }
}

}  // namespace qvm::images
