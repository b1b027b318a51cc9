#include "launcher/image_draft.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <system_error>
#include <utility>

#include "images/error.h"
#include "images/sparse.h"
#include "launcher/any_disk.h"
#include "launcher/definition.h"
#include "launcher/failure.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

/// The draft is what it becomes where it has to be unpacked or converted.
AnyDisk open_disk(const fs::path& path, const ImageDraft& draft, bool trust_backing,
                  ProgressMeter& meter) {
    std::error_code ignored;
    const auto size = fs::file_size(path, ignored);
    std::string_view now;
    return open_any_disk(
        path, draft.fd(), draft.path().parent_path(),
        {.trust_backing = trust_backing, .progress = [&](std::string_view step, double part) {
             if (std::exchange(now, step) != step) meter.begin(0, size);
             meter.update(static_cast<std::uint64_t>(part * static_cast<double>(size)));
         }});
}

ImageRecord record_of(const ImageFile& image, std::string digest) {
    return {.digest = std::move(digest),
            .format = image.facts.format,
            .virtual_size = image.facts.virtual_size,
            .size = images::size_of(image.fd.get()),
            .created = timestamp()};
}

/// Puts a copy of an image into the draft, unless it is there, and gives the hash all of it.
void copy(int image, const ImageDraft& draft, bool is_draft, images::Hash& hash,
          ProgressMeter& meter) {
    meter.begin(0, images::size_of(image));
    const auto tell = [&](std::uint64_t done) { meter.update(done); };
    if (is_draft || images::share_blocks(image, draft.fd()))
        return images::hash_file(draft.fd(), hash, tell);
    check_space(draft.path().parent_path(), images::space_of(image), more_room);
    images::copy_sparse(image, draft.fd(), hash, tell);
}

/// Makes an image in a draft. What the host could not do, of which no file is to blame, is said by
/// the reason alone.
template <typename Work>
NewImage in_draft(const ImageStore& store, const Work& work) {
    try {
        return work(ImageDraft{store.drafts()});
    } catch (const std::system_error& error) {
        const auto why = error.code().message();
        if (!is_full(error.code().value())) throw Failure(why);
        throw Failure(fmt::format("write to '{}': {}", store.drafts().string(), why), more_room);
    }
}

}  // namespace

NewImage image_of_file(const ImageStore& store, const fs::path& path, bool trust_backing) {
    const auto what = fmt::format("import '{}'", path.string());
    const auto copy_it = [&](ImageDraft draft) -> NewImage {
        ProgressMeter meter{what, ProgressMeter::On::terminal};
        const auto [image, is_draft] = open_disk(path, draft, trust_backing, meter);
        images::Hash hash{images::HashKind::sha256};
        copy(image.fd.get(), draft, is_draft, hash, meter);
        const auto& before = image.known.front();
        const UniqueFd now{::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
        if (!now || !is_unchanged(before, known_file(path, {}, now.get())))
            throw Failure("it was written to meanwhile");
        return {std::move(draft), record_of(image, hash.finish().hex)};
    };
    return naming(what, [&] { return in_draft(store, copy_it); });
}

ImageRecord record_of_blob(const ImageStore& store, const std::string& digest) {
    return in_draft(store,
                    [&](ImageDraft draft) -> NewImage {
                        ProgressMeter meter{"", ProgressMeter::On::nothing};
                        const auto disk = open_disk(store.blob(digest), draft, false, meter);
                        return {std::move(draft), record_of(disk.image, digest)};
                    })
        .record;
}

NewImage image_of_download(const ImageStore& store, Download& download, std::string digest,
                           ProgressMeter& meter) {
    const auto open = [&](const ImageDraft& draft) {
        try {
            return open_disk(download.path(), draft, false, meter);
        } catch (const images::Error&) {
            download.discard();  // it is what nobody can use
            throw;
        }
    };
    return in_draft(store, [&](ImageDraft draft) -> NewImage {
        const auto [image, is_draft] = open(draft);
        if (!is_draft) {
            auto record = record_of(image, std::move(digest));
            return {download.finish(), std::move(record)};
        }
        images::Hash hash{images::HashKind::sha256};
        copy(image.fd.get(), draft, true, hash, meter);
        download.discard();
        return {std::move(draft), record_of(image, hash.finish().hex)};
    });
}

}  // namespace qvm
