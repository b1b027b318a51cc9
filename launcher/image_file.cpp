#include "launcher/image_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "images/contents.h"
#include "images/error.h"
#include "images/image_info.h"
#include "images/overlay.h"
#include "launcher/failure.h"
#include "launcher/qemu_img.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::milliseconds dying_pause{20};
constexpr int dying_tries = 100;

/// Failures of these are the reason alone; naming() says of what.
UniqueFd open_file(const fs::path& path, int access) {
    // Not to wait for the other end of a pipe.
    UniqueFd fd{::open(path.c_str(), access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)};
    struct stat status {};
    if (!fd || ::fstat(fd.get(), &status) != 0) throw Failure(reason());
    if (S_ISDIR(status.st_mode)) throw Failure("is a directory");
    if (!S_ISREG(status.st_mode)) throw Failure("is not a regular file");
    return fd;
}

/// QEMU's image lock: whoever writes holds byte 100 + 1, whoever lets nobody else write holds byte
/// 200 + 1 (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE and BLK_PERM_WRITE in QEMU's block layer).
bool is_in_use(int fd, bool writes) {
    const auto is_locked = [fd](off_t byte) {
        struct flock lock {};
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        lock.l_start = byte;
        lock.l_len = 1;
        return ::fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    };
    return is_locked(101) || (writes && is_locked(201));
}

void fill_overlay(const std::string& what, int fd, std::uint64_t virtual_size) {
    naming(what, [&] { images::write_overlay(fd, virtual_size); });
}

/// Finds out what disk an open file holds, and calls `check` with what qemu-img says of it.
template <typename Check>
void examine(ImageFile& image, bool trust_backing, Check check) {
    const auto format = images::check_header(image.fd.get(), trust_backing);
    images::check_format(format);
    const auto info = probe_image(image.fd.get(), format);
    images::check_image(info, trust_backing);
    check(image.fd.get(), info);
    image.facts = {.format = info.format, .virtual_size = info.virtual_size};
    image.known.front().format = info.format;
}

template <typename Check>
ImageFile open_disk(const fs::path& path, bool writes, bool trust_backing, Check check) {
    auto image = open_unused(path, writes);
    examine(image, trust_backing, check);
    return image;
}

std::string named(const std::string& what, const fs::path& path) {
    return fmt::format("{} '{}'", what, path.string());
}

/// Opens what `image`, at `path`, says is beneath it. A format that an image notes is taken at its
/// word: a guest may have written a qcow2 header into the raw disk that is meant.
void open_backing(ImageFile& image, const fs::path& path, std::string name, std::string format) {
    constexpr std::size_t most_backing = 100;
    for (auto below = path; !name.empty();) {
        if (image.backing.size() == most_backing)
            throw Failure(fmt::format("there are more than {} files beneath it", most_backing));
        below = below.parent_path() / std::exchange(name, {});
        auto opened = naming(named("open backing file", below), [&] {
            if (format == "raw") {
                auto raw = open_unused(below, false);
                raw.facts.format = raw.known.front().format = format;
                return raw;
            }
            return open_disk(below, false, true, [&](int, const images::ImageInfo& info) {
                if (!format.empty() && info.format != format)
                    throw images::Error("is no " + format);
                name = info.backing_file;
                format = info.backing_format;
            });
        });
        image.facts.backing.push_back(opened.facts.format);
        image.known.push_back(std::move(opened.known.front()));
        image.backing.push_back(std::move(opened.fd));
    }
}

}  // namespace

UniqueFd open_unnamed(const fs::path& directory) {
    UniqueFd fd{::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    if (fd || (errno != EOPNOTSUPP && errno != EISDIR)) return fd;
    // A file system without O_TMPFILE: the name lives for the moment between two calls.
    auto name = (directory / "overlay-XXXXXX").string();
    fd.reset(::mkostemp(name.data(), O_CLOEXEC));
    if (fd) ::unlink(name.c_str());
    return fd;
}

ImageFile open_unused(const fs::path& path, bool writes) {
    ImageFile image;
    image.fd = open_file(path, writes ? O_RDWR : O_RDONLY);
    if (is_in_use(image.fd.get(), writes))
        throw Failure(fmt::format("is in use by another process that {}",
                                  writes ? "has it open" : "writes to it"));
    image.known.push_back(known_file(path, {}, image.fd.get()));
    return image;
}

KnownFile known_file(const fs::path& path, std::string format, int fd) {
    struct stat status {};
    if (::fstat(fd, &status) != 0)
        throw Failure(fmt::format("look at '{}': {}", path.string(), reason()));
    constexpr std::uint64_t ns = 1'000'000'000;
    return {.path = fs::absolute(path),
            .format = std::move(format),
            .size = static_cast<std::uint64_t>(status.st_size),
            .modified = static_cast<std::uint64_t>(status.st_mtim.tv_sec) * ns +
                        static_cast<std::uint64_t>(status.st_mtim.tv_nsec)};
}

bool is_unchanged(const KnownFile& was, const KnownFile& now) {
    if (was.size != now.size) return false;
    if (!now.checksum.empty()) return now.checksum == was.checksum;
    return was.modified == now.modified;
}

ImageFile open_image(const VmOptions& vm, bool persist) {
    return naming(named("open image", vm.image_text()), [&] {
        return as_image(open_unused(*vm.image, persist), *vm.image, vm.kernel.has_value(),
                        vm.trust_backing);
    });
}

ImageFile as_image(ImageFile file, const fs::path& path, bool has_kernel, bool trust_backing) {
    std::string name, format;
    examine(file, trust_backing, [&](int fd, const images::ImageInfo& info) {
        images::check_contents(fd, info, has_kernel);
        name = info.backing_file;
        format = info.backing_format;
    });
    open_backing(file, path, std::move(name), std::move(format));
    return file;
}

ImageFile open_drive(const DriveOption& drive) {
    return naming(named("--drive", drive.file), [&] {
        // Whatever a guest wrote into a raw disk, its owner can open it as one.
        if (drive.format == "raw") {
            auto image = open_unused(drive.file, !drive.read_only);
            image.facts.format = image.known.front().format = drive.format;
            return image;
        }
        return open_disk(drive.file, !drive.read_only, false,
                         [&](int fd, const images::ImageInfo& info) {
                             images::check_contents(fd, info, true);
                             if (!drive.format.empty() && info.format != drive.format)
                                 throw images::Error("is no " + drive.format);
                         });
    });
}

std::uint64_t disk_size(std::optional<std::uint64_t> wanted_mib, std::uint64_t image_size) {
    constexpr std::uint64_t mib = 1024 * 1024;
    if (!wanted_mib) return image_size;
    const auto size = *wanted_mib * mib;
    if (size < image_size)
        throw Failure(fmt::format("--disk-size {}M: the image has {} MiB already", *wanted_mib,
                                  (image_size + mib - 1) / mib));
    return size;
}

UniqueFd make_overlay(const fs::path& directory, std::uint64_t virtual_size) {
    auto overlay = open_unnamed(directory);
    const auto what = fmt::format("create overlay in '{}'", directory.string());
    if (!overlay) throw Failure(fmt::format("{}: {}", what, reason()));
    fill_overlay(what, overlay.get(), virtual_size);
    return overlay;
}

void make_named_overlay(const fs::path& path, std::uint64_t virtual_size) {
    const auto what = fmt::format("create overlay '{}'", path.string());
    const UniqueFd overlay{::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    if (!overlay) throw Failure(fmt::format("{}: {}", what, reason()));
    fill_overlay(what, overlay.get(), virtual_size);
    if (::fsync(overlay.get()) != 0) throw Failure(fmt::format("{}: {}", what, reason()));
}

UniqueFd open_own(const std::string& what, const fs::path& path) {
    const auto name = named("open " + what, path);
    auto fd = naming(name, [&] { return open_file(path, O_RDWR); });
    // The QEMU of a supervisor that was killed is gone a moment after it.
    for (int tries = 0; tries < dying_tries && is_in_use(fd.get(), true); ++tries)
        std::this_thread::sleep_for(dying_pause);
    if (is_in_use(fd.get(), true)) throw Failure(name + ": is in use by another process");
    return fd;
}

void check_readable_file(const std::string& option, const fs::path& path) {
    naming(named(option, path), [&] { (void)open_file(path, O_RDONLY); });
}

}  // namespace qvm
