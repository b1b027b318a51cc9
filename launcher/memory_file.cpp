#include "launcher/memory_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "launcher/directories.h"
#include "launcher/failure.h"

namespace qvm {

MemoryFile::MemoryFile(std::string_view bytes) : fd_(::memfd_create("qvm", MFD_CLOEXEC)) {
    const auto failure = [] {
        return Failure("make a file in memory: " + std::generic_category().message(errno));
    };
    if (!fd_ || !write_all(fd_.get(), bytes)) throw failure();
}

UniqueFd MemoryFile::open_for_reading() const {
    const auto path = fmt::format("/proc/self/fd/{}", fd_.get());
    UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd) throw Failure("open a file in memory: " + std::generic_category().message(errno));
    return fd;
}

std::string MemoryFile::text() const {
    constexpr std::size_t most = 64 * 1024;
    std::string text(most, '\0');
    const auto size = ::pread(fd_.get(), text.data(), text.size(), 0);
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
    return text;
}

std::string first_line(const std::string& text) {
    const auto begin = std::min(text.find_first_not_of('\n'), text.size());
    return text.substr(begin, text.find('\n', begin) - begin);
}

}  // namespace qvm
