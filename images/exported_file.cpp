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
    : file_(fs::weakly_canonical(fs::absolute(file))), mode_(mode) {
    if (fs::exists(file_) && !fs::is_regular_file(file_)) {
        throw Error("it is there, and no regular file");
    }
    const auto ending = "." + file_.filename().string();
    auto aside = (file_.parent_path() / ".XXXXXX").string() + ending;
    fd_ = mkostemps(aside.data(), static_cast<int>(ending.size()), O_CLOEXEC);
    if (fd_ < 0) throw std::system_error(errno, std::generic_category());
    aside_ = aside;
}

ExportedFile::~ExportedFile() {
    close(fd_);
    unlink(aside_.c_str());
}

void ExportedFile::keep() const {
    const auto mask = umask(0);
    umask(mask);
    auto mode = mode_ & ~mask;
    struct stat there {};
    if (stat(file_.c_str(), &there) == 0) {
        // Its mode is the owner's to give, so that comes first, as far as we may.
        mode = there.st_mode & mode_;
        if (fchown(fd_, there.st_uid, there.st_gid) != 0 && fchown(fd_, -1, there.st_gid) != 0)
            mode &= ~static_cast<mode_t>(S_IRWXG);  // which is another group's
    }
    if (fchmod(fd_, mode) != 0) throw std::system_error(errno, std::generic_category());
    fs::rename(aside_, file_);
}

}  // namespace qvm::images
