#include "images/exported_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <random>
#include <string>
#include <system_error>

#include "images/error.h"

namespace qvm::images {

namespace fs = std::filesystem;

namespace {

std::system_error failed() {
    return {errno, std::generic_category()};
}

}  // namespace

ExportedFile::ExportedFile(const fs::path& file, mode_t mode)
    : file_(fs::weakly_canonical(fs::absolute(file))), mode_(mode) {
    if (fs::exists(file_) && !fs::is_regular_file(file_)) {
        throw Error("it is there, and no regular file");
    }
    const auto number = std::to_string(std::random_device{}());
    aside_ = directory() / ("." + number + "." + file_.filename().string());
    fd_ = open(directory().c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        fd_ = open(aside_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        has_name_ = fd_ >= 0;
    }
    if (fd_ < 0) throw failed();
}

ExportedFile::~ExportedFile() {
    close(fd_);
    if (has_name_) unlink(aside_.c_str());
}

const fs::path& ExportedFile::path() {
    const auto open_one = "/proc/self/fd/" + std::to_string(fd_);
    if (!has_name_ &&
        linkat(AT_FDCWD, open_one.c_str(), AT_FDCWD, aside_.c_str(), AT_SYMLINK_FOLLOW) != 0)
        throw failed();
    has_name_ = true;
    return aside_;
}

void ExportedFile::keep() {
    const auto mask = umask(0);
    umask(mask);
    auto mode = mode_ & ~mask;
    struct stat there {};
    if (stat(file_.c_str(), &there) == 0) {
        // Its mode is the owner's to give, so that comes first, as far as we may.
        mode = there.st_mode & mode_;
        if (fchown(fd_, there.st_uid, there.st_gid) != 0 &&
            fchown(fd_, static_cast<uid_t>(-1), there.st_gid) != 0)
            mode &= ~static_cast<mode_t>(S_IRWXG);  // which is another group's
    }
    if (fchmod(fd_, mode) != 0) throw failed();
    fs::rename(path(), file_);
    has_name_ = false;
}

}  // namespace qvm::images
