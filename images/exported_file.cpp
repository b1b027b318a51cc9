#include "images/exported_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "images/error.h"

namespace qvm::images {

namespace fs = std::filesystem;

ExportedFile::ExportedFile(const fs::path& file, mode_t mode)
    : file_(fs::weakly_canonical(fs::absolute(file))) {
    if (fs::exists(file_) && !fs::is_regular_file(file_)) {
        throw Error("it is there, and no regular file");
    }
    const auto ending = "." + file_.filename().string();
    auto aside = (file_.parent_path() / ".XXXXXX").string() + ending;
    fd_ = mkostemps(aside.data(), static_cast<int>(ending.size()), O_CLOEXEC);
    if (fd_ < 0) throw std::system_error(errno, std::generic_category());
    aside_ = aside;
    const auto mask = umask(0);
    umask(mask);
    if (fchmod(fd_, mode & ~mask) != 0) {
        const std::system_error error{errno, std::generic_category()};
        close(fd_);
        unlink(aside_.c_str());
        throw error;
    }
}

ExportedFile::~ExportedFile() {
    close(fd_);
    unlink(aside_.c_str());
}

}  // namespace qvm::images
