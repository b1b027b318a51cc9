#include "images/bytes.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "images/error.h"

namespace qvm::images {

std::uint64_t regular_file_size(int fd) {
    struct stat status {};
    if (fstat(fd, &status) < 0) throw std::system_error(errno, std::generic_category(), "fstat");
    if (!S_ISREG(status.st_mode)) throw Error("is not a regular file");
    return static_cast<std::uint64_t>(status.st_size);
}

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

std::uint64_t big_endian(std::string_view bytes, std::size_t offset, std::size_t width) {
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
        value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
    }
    return value;
}

std::uint64_t little_endian(std::string_view bytes, std::size_t offset, std::size_t width) {
    std::uint64_t value = 0;
    for (std::size_t i = width; i-- > 0;) {
        value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
    }
    return value;
}

bool is_within(std::uint64_t offset, std::uint64_t size, std::uint64_t file_size) {
    return size <= file_size && offset <= file_size - size;
}

}  // namespace qvm::images
