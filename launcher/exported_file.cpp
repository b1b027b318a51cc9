#include "launcher/exported_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <system_error>

#include "launcher/failure.h"

namespace qvm {

namespace fs = std::filesystem;

ExportedFile::ExportedFile(const fs::path& file, mode_t mode) : file_(fs::weakly_canonical(file)) {
    if (fs::exists(file_) && !fs::is_regular_file(file_))
        throw Failure("it is there, and no regular file");
    const auto ending = "." + file_.filename().string();
    auto aside = (file_.parent_path() / ".XXXXXX").string() + ending;
    fd_.reset(::mkostemps(aside.data(), static_cast<int>(ending.size()), O_CLOEXEC));
    if (!fd_) throw std::system_error(errno, std::generic_category());
    aside_ = aside;
    const auto mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(fd_.get(), mode & ~mask) != 0) {
        const std::system_error error{errno, std::generic_category()};
        ::unlink(aside_.c_str());
        throw error;
    }
}

ExportedFile::~ExportedFile() {
    ::unlink(aside_.c_str());
}

}  // namespace qvm
