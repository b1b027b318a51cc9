#include "images/unpack.h"

#include <archive.h>
#include <archive_entry.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>
#include <vector>

#include "images/bytes.h"
#include "images/error.h"
#include "images/sparse.h"

namespace qvm::images {
namespace {

constexpr std::string_view gzip_magic = "\x1f\x8b";
constexpr std::array<std::string_view, 3> magics{
    gzip_magic, std::string_view{"\xfd\x37\x7a\x58\x5a\0", 6},  // xz
    std::string_view{"\x28\xb5\x2f\xfd", 4},                    // zstd
};
constexpr std::size_t block_size = 256 * 1024;

struct Close {
    void operator()(archive* reader) const { archive_read_free(reader); }
};
using Reader = std::unique_ptr<archive, Close>;

// What gzip packed, by zlib: libarchive looks at no checksum of gzip's, and takes whatever follows.
class Inflation {
  public:
    Inflation() {
        constexpr int gzip_alone = 16 + MAX_WBITS;
        if (inflateInit2(&stream_, gzip_alone) != Z_OK) throw std::bad_alloc();
    }
    Inflation(const Inflation&) = delete;
    Inflation& operator=(const Inflation&) = delete;
    ~Inflation() { inflateEnd(&stream_); }

    [[nodiscard]] bool needs_input() const { return stream_.avail_in == 0; }
    // Borrowed until all of it was taken.
    void give(std::vector<char>& bytes, std::size_t size) {
        stream_.next_in = reinterpret_cast<Bytef*>(bytes.data());
        stream_.avail_in = static_cast<uInt>(size);
    }
    // All is there, unless more follows: gzip packs a file in as many parts as one likes.
    [[nodiscard]] bool is_complete() const { return is_complete_; }

    // As much as there is in what was given; why there is none, where it is damaged.
    const char* next(std::string_view& piece) {
        if (is_complete_) skip_zeros();
        if (is_complete_ && !needs_input()) {
            inflateReset(&stream_);
            is_complete_ = false;
        }
        stream_.next_out = reinterpret_cast<Bytef*>(buffer_.data());
        stream_.avail_out = static_cast<uInt>(buffer_.size());
        const int status = is_complete_ ? Z_OK : inflate(&stream_, Z_NO_FLUSH);
        if (status == Z_STREAM_END) is_complete_ = true;
        piece = {buffer_.data(), buffer_.size() - stream_.avail_out};
        if (status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR) return nullptr;
        return stream_.msg ? stream_.msg : "it is damaged";
    }

  private:
    // What fills up a tape's last block.
    void skip_zeros() {
        for (; stream_.avail_in > 0 && *stream_.next_in == 0; ++stream_.next_in) --stream_.avail_in;
    }

    z_stream stream_{};
    std::vector<char> buffer_ = std::vector<char>(block_size);
    bool is_complete_ = false;
};

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
        if (read_at(fd, 0, gzip_magic.size()) == gzip_magic) inflation_.emplace();
        archive_read_support_filter_xz(reader);
        archive_read_support_filter_zstd(reader);
        archive_read_support_format_raw(reader);
        archive_read_support_format_empty(reader);
        archive_entry* entry = nullptr;
        if (archive_read_open(reader, this, nullptr, read_block, nullptr) != ARCHIVE_OK) fail();
        const int status = archive_read_next_header(reader, &entry);
        is_empty_ = status == ARCHIVE_EOF;
        // What no filter knows comes through as it is.
        const int filters = archive_filter_count(reader) - 1 + (inflation_ ? 1 : 0);
        if ((status != ARCHIVE_OK && !is_empty_) || filters == 0) fail();
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
    [[nodiscard]] double bytes_read() const { return static_cast<double>(bytes_read_); }

  private:
    static la_ssize_t read_block(archive* reader, void* self, const void** block) {
        auto& unpacking = *static_cast<Unpacking*>(self);
        *block = unpacking.buffer_.data();
        return unpacking.inflation_ ? unpacking.inflate_file(reader, block)
                                    : unpacking.read_file(reader);
    }

    // Into the buffer: how much; 0 at the end, -1 where it cannot be read.
    la_ssize_t read_file(archive* reader) {
        const auto size = read(fd_, buffer_.data(), buffer_.size());
        if (size < 0) archive_set_error(reader, errno, "%s", strerror(errno));
        has_ended_ = size == 0;
        bytes_read_ += std::max<la_ssize_t>(size, 0);
        return size;
    }

    la_ssize_t inflate_file(archive* reader, const void** block) {
        for (;;) {
            if (inflation_->needs_input()) {
                const auto size = read_file(reader);
                if (size < 0) return size;
                if (size == 0) return inflation_->is_complete() ? 0 : -1;
                inflation_->give(buffer_, static_cast<std::size_t>(size));
            }
            std::string_view piece;
            if (const char* why = inflation_->next(piece)) {
                archive_set_error(reader, EINVAL, "%s", why);
                return -1;
            }
            *block = piece.data();
            if (!piece.empty()) return static_cast<la_ssize_t>(piece.size());
        }
    }

    [[noreturn]] void fail() const {
        const char* why = archive_error_string(reader_.get());
        // Each filter has its own words for that, or none.
        if (has_ended_) why = "it is cut off, its end is missing";
        throw Error(std::string("it cannot be unpacked: ") + (why ? why : "it is damaged"));
    }

    int fd_;
    std::vector<char> buffer_ = std::vector<char>(block_size);
    la_ssize_t bytes_read_ = 0;
    std::optional<Inflation> inflation_;
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
