#include "launcher/image_draft.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <system_error>

#include "images/sparse.h"
#include "launcher/definition.h"
#include "launcher/failure.h"
#include "launcher/image_file.h"
#include "launcher/progress.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

/// Whether anything boots from it is a matter of the VM's: it may have a kernel of its own.
ImageFile open_any_image(const fs::path& path) {
    return open_image(path, false, true, false);
}

ImageRecord record_of(const ImageFile& image, std::string digest) {
    return {.digest = std::move(digest),
            .format = image.facts.format,
            .virtual_size = image.facts.virtual_size,
            .size = image.known.front().size,
            .created = timestamp()};
}

/// What a file takes on disk.
std::uint64_t space_of(int fd) {
    struct stat status {};
    return ::fstat(fd, &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512 : 0;
}

}  // namespace

NewImage image_of_file(const ImageStore& store, const fs::path& path) {
    const auto what = fmt::format("import '{}'", path.string());
    const auto image = open_any_image(path);
    ImageDraft draft{store.drafts()};
    images::Hash hash{images::HashKind::sha256};
    ProgressMeter meter{what, ProgressMeter::On::terminal};
    meter.begin(0, image.known.front().size);
    const auto tell = [&](std::uint64_t done) { meter.update(done); };
    try {
        if (images::share_blocks(image.fd.get(), draft.fd())) {
            images::hash_file(draft.fd(), hash, tell);
        } else {
            check_space(store.drafts(), space_of(image.fd.get()));
            images::copy_sparse(image.fd.get(), draft.fd(), hash, tell);
        }
    } catch (const std::system_error& error) {
        throw Failure(fmt::format("{}: {}", what, error.code().message()));
    } catch (const Failure& failure) {
        throw Failure(fmt::format("{}: {}", what, failure.what()), failure.hint());
    }
    const auto& before = image.known.front();
    if (known_file(path, before.format, image.fd.get()) != before)
        throw Failure(fmt::format("{}: it was written to meanwhile", what));
    return {std::move(draft), record_of(image, hash.finish().hex)};
}

NewImage image_of_download(Download& download, std::string digest) {
    try {
        auto record = record_of(open_any_image(download.path()), std::move(digest));
        return {download.finish(), std::move(record)};
    } catch (const Failure& failure) {
        download.discard();
        // By the path that is ours alone the user does not know it.
        const auto prefix = fmt::format("open image '{}': ", download.path().string());
        std::string why = failure.what();
        if (why.starts_with(prefix)) why.erase(0, prefix.size());
        throw Failure(why, failure.hint());
    }
}

}  // namespace qvm
