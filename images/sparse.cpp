#include "images/sparse.h"

#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

namespace qvm::images {

namespace {

constexpr off_t page = 4096;
constexpr off_t block = 64 * 1024;
constexpr off_t buffer_size = 1024 * 1024;

[[noreturn]] void fail(const char* call) {
    throw std::system_error(errno, std::generic_category(), call);
}

struct stat status_of(int fd) {
    struct stat status {};
    if (::fstat(fd, &status) != 0) fail("stat");
    return status;
}

off_t end_of(int fd) {
    return status_of(fd).st_size;
}

bool is_zero(const char* bytes, std::size_t size) {
    return size == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0);
}

/// Where data begins at or after `offset`, or `end` where there is none.
off_t next_data(int fd, off_t offset, off_t end) {
    const off_t at = ::lseek(fd, offset, SEEK_DATA);
    if (at < 0 && errno != ENXIO) fail("find data");
    return at < 0 ? end : std::min(at, end);
}

off_t next_hole(int fd, off_t offset, off_t end) {
    const off_t at = ::lseek(fd, offset, SEEK_HOLE);
    if (at < 0) fail("find a hole");
    return std::min(at, end);
}

void read_all(int fd, char* to, off_t size, off_t offset) {
    while (size > 0) {
        const auto got = ::pread(fd, to, static_cast<std::size_t>(size), offset);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = EIO;  // it has become shorter
        if (got <= 0) fail("read");
        to += got, offset += got, size -= got;
    }
}

void write_all(int fd, const char* from, off_t size, off_t offset) {
    while (size > 0) {
        const auto done = ::pwrite(fd, from, static_cast<std::size_t>(size), offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) fail("write");
        from += done, offset += done, size -= done;
    }
}

/// Calls `take` with pieces of the data, which begin at multiples of `block`.
template <typename Take>
void for_each_piece(int fd, Take take) {
    std::vector<char> buffer(buffer_size);
    const off_t end = end_of(fd);
    off_t at = 0;
    for (off_t data = 0; (data = next_data(fd, at, end)) < end;) {
        const off_t hole = next_hole(fd, data, end);
        const off_t stop = std::min(end, (hole + block - 1) / block * block);
        for (at = data - data % block; at < stop;) {
            const off_t size = std::min(buffer_size, stop - at);
            read_all(fd, buffer.data(), size, at);
            take(buffer.data(), size, at);
            at += size;
        }
    }
}

/// What a copy and a checksum of all of a file have in common: pieces in their order, and zeros for
/// what is between them.
template <typename Take>
void hash_pieces(int fd, Hash& hash, const BytesDone& done, Take take) {
    const std::vector<char> zeros(buffer_size);
    off_t hashed = 0;
    const auto add = [&](const char* bytes, off_t size) {
        hash.update(bytes, static_cast<std::size_t>(size));
        hashed += size;
        done(static_cast<std::uint64_t>(hashed));
    };
    const auto add_zeros = [&](off_t end) {
        while (hashed < end) add(zeros.data(), std::min(buffer_size, end - hashed));
    };
    for_each_piece(fd, [&](const char* bytes, off_t size, off_t offset) {
        add_zeros(offset);
        take(bytes, size, offset);
        add(bytes, size);
    });
    add_zeros(end_of(fd));
}

}  // namespace

std::uint64_t size_of(int fd) {
    return static_cast<std::uint64_t>(end_of(fd));
}

std::uint64_t space_of(int fd) {
    return static_cast<std::uint64_t>(status_of(fd).st_blocks) * 512;
}

std::uint64_t write_sparse(int to, std::string_view bytes, std::uint64_t offset) {
    const auto size = static_cast<off_t>(bytes.size());
    std::uint64_t written = 0;
    const auto has_data = [&](off_t at) {
        return at < size &&
               !is_zero(bytes.data() + at, static_cast<std::size_t>(std::min(page, size - at)));
    };
    for (off_t begin = 0; begin < size; begin += page) {
        off_t end = begin;
        while (has_data(end)) end += page;
        if (end == begin) continue;
        const auto length = std::min(end, size) - begin;
        write_all(to, bytes.data() + begin, length, static_cast<off_t>(offset) + begin);
        written += static_cast<std::uint64_t>(length);
        begin = end;  // which is no data
    }
    return written;
}

void fill_sparse(int from, int to, const std::stop_token& stopped) {
    for_each_piece(from, [&](const char* bytes, off_t size, off_t offset) {
        if (stopped.stop_requested())
            throw std::system_error(ECANCELED, std::generic_category(), "copy");
        write_sparse(to, {bytes, static_cast<std::size_t>(size)},
                     static_cast<std::uint64_t>(offset));
    });
}

bool share_blocks(int from, int to) {
    return ::ioctl(to, FICLONE, from) == 0;
}

void copy_sparse(int from, int to, const std::stop_token& stopped) {
    if (share_blocks(from, to)) return;
    if (::ftruncate(to, end_of(from)) != 0) fail("set the size");
    fill_sparse(from, to, stopped);
}

void copy_sparse(int from, int to, Hash& hash, const BytesDone& done) {
    if (::ftruncate(to, end_of(from)) != 0) fail("set the size");
    hash_pieces(from, hash, done, [to](const char* bytes, off_t size, off_t offset) {
        write_sparse(to, {bytes, static_cast<std::size_t>(size)},
                     static_cast<std::uint64_t>(offset));
    });
}

void hash_file(int fd, Hash& hash, const BytesDone& done) {
    hash_pieces(fd, hash, done, [](const char*, off_t, off_t) {});
}

std::string sparse_checksum(int fd) {
    Hash hash{HashKind::sha256};
    for_each_piece(fd, [&](const char* bytes, off_t size, off_t offset) {
        for (off_t at = 0; at < size; at += block) {
            const auto length = static_cast<std::size_t>(std::min(block, size - at));
            if (is_zero(bytes + at, length)) continue;
            std::array<std::uint8_t, 8> number{};
            for (std::size_t i = 0; i < number.size(); ++i)
                number[i] = static_cast<std::uint8_t>(
                    static_cast<std::uint64_t>((offset + at) / block) >> (8 * i));
            hash.update(number.data(), number.size());
            hash.update(bytes + at, length);
        }
    });
    return hash.finish().hex;
}

}  // namespace qvm::images
