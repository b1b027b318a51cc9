// image pull, import, tag, export, rm, prune, verify.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "images/exported_file.h"
#include "images/sparse.h"
#include "images/url.h"
#include "launcher/catalogues.h"
#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/image_draft.h"
#include "launcher/image_file.h"
#include "launcher/image_store.h"
#include "launcher/image_users.h"
#include "launcher/interruption.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "launcher/pull.h"
#include "launcher/snapshot.h"
#include "launcher/table.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

ImageStore open_store(const Directories& directories) {
    return ImageStore{directories.images()};
}

Failure in_use(const std::string& image, const std::vector<ImageUser>& users) {
    const bool needed =
        std::any_of(users.begin(), users.end(), [](const auto& user) { return user.needs_it(); });
    return Failure{
        fmt::format("image '{}': is in use by {}", image, joined(names_of(users))),
        needed ? "those are of no use without it: remove them first"
               : fmt::format("qvm image rm -f {}: those that run keep it to their end", image)};
}

Failure unreadable(const std::string& what, const ImageUser& user) {
    const auto remedy = user.kind == ImageUser::Kind::running    ? "stop"
                        : user.kind == ImageUser::Kind::snapshot ? "snapshot rm"
                                                                 : "rm";
    return Failure{fmt::format("{}: nobody can tell which images {} uses: {}", what,
                               to_string(user), user.unreadable),
                   fmt::format("qvm {} {}", remedy, user.name)};
}

/// What takes images away; the store is its alone.
class Removal {
  public:
    explicit Removal(const Directories& directories)
        : store_(open_store(directories)),
          warm_(directories.warm()),
          lock_(store_.lock()),
          users_(image_users(directories, store_)) {}

    [[nodiscard]] int exit_status() const noexcept { return exit_status_; }

    void remove(const std::vector<std::string>& texts, bool force) {
        for (const auto& text : texts) try {
                if (const auto digest = digest_in_store(store_, text)) {
                    remove_digest(text, *digest, force);
                    print(text + "\n");
                } else {
                    const auto name = name_in_store(store_, text);
                    remove_name(name, force);
                    print(name + "\n");
                }
            } catch (const Failure& failure) {
                exit_status_ = say_failure(failure);
            }
    }

    /// Whether all can be read that may be of any image, or use any; else that is told.
    [[nodiscard]] bool can_prune() {
        const auto records = store_.records();
        for (const auto& [name, failure] : records.broken) exit_status_ = say_failure(failure);
        for (const auto& user : users_.unreadable)
            exit_status_ = say_failure(unreadable("image prune", user));
        return records.broken.empty() && users_.unreadable.empty();
    }
    void prune_names(std::chrono::file_clock::time_point before) const {
        for (const auto& [name, record] : store_.records().known) {
            if (!users_.in_the_way(record.digest, false).empty() || store_.last_use(name) >= before)
                continue;
            store_.remove_name(name);
            print(fmt::format("image '{}'\n", name));
        }
    }
    void prune_blobs() const {
        const auto records = store_.records();
        for (const auto& digest : store_.digests()) {
            if (!records.names_of(digest).empty() || !users_.in_the_way(digest, false).empty())
                continue;
            const auto space = store_.space_of(digest);
            remove_blob(digest);
            print(fmt::format("{} of sha256:{}\n", size_text(space), digest));
        }
    }
    void prune_downloads(std::chrono::file_clock::time_point before) const {
        for (const auto space : store_.remove_downloads(before))
            print(fmt::format("{} of a download\n", size_text(space)));
    }

  private:
    void remove_digest(const std::string& text, const std::string& digest, bool force) {
        const auto records = store_.records();
        const auto names = records.names_of(digest);
        if (!force) check_names(text, records);
        if (names.size() > 1 && !force)
            throw Failure(fmt::format("image '{}': has several names: {}", text, joined(names)),
                          fmt::format("qvm image rm -f {}; or those names", text));
        check_unused(text, digest, force);
        for (const auto& name : names) store_.remove_name(name);
        remove_blob(digest);
    }

    void remove_name(const std::string& name, bool force) {
        const auto records = store_.records();
        const auto record = records.known.find(name);
        const bool last =
            record != records.known.end() && records.names_of(record->second.digest).size() == 1;
        if (last) check_names(name, records);
        if (last) check_unused(name, record->second.digest, force);
        store_.remove_name(name);
        if (last) remove_blob(record->second.digest);
    }

    /// What cannot be read may be another name of the image.
    static void check_names(const std::string& image, const ImageRecords& records) {
        for (const auto& [name, failure] : records.broken)
            throw Failure(fmt::format("image '{}': nobody can tell whether it has another name: {}",
                                      image, failure.what()),
                          failure.hint());
    }

    void check_unused(const std::string& image, const std::string& digest, bool force) const {
        const auto those = users_.in_the_way(digest, force);
        for (const auto& user : those)
            if (!user.unreadable.empty()) throw unreadable(fmt::format("image '{}'", image), user);
        if (!those.empty()) throw in_use(image, those);
    }

    /// With the warm starts from it, which nothing can begin with any more.
    void remove_blob(const std::string& digest) const {
        store_.remove_blob(digest);
        for (const auto& user : users_.of(digest)) try {
                if (user.kind == ImageUser::Kind::warm) (void)warm_.remove(user.name, false);
            } catch (const Failure&) {
                // Another was faster; or it goes when there are too many.
            }
    }

    ImageStore store_;
    SnapshotStore warm_;
    UniqueFd lock_;
    ImageUsers users_;
    int exit_status_ = status::ok;
};

/// What is copied is compared with what it has to be; what is shared is what the store has.
void export_image(const ImageStore& store, const std::string& name, const std::string& digest,
                  const fs::path& file) {
    const UniqueFd image{::open(store.blob(digest).c_str(), O_RDONLY | O_CLOEXEC)};
    if (!image) throw Failure(fmt::format("image '{}': {}", name, reason()));
    if (store.has_blob(file))
        throw Failure("is an image of qvm's store, which is never written to");
    const Interruption interruption;
    images::ExportedFile copy{file, 0666};
    if (fs::exists(file)) (void)open_unused(file, true);  // a VM's own disk, perhaps
    if (!images::share_blocks(image.get(), copy.fd())) {
        check_space(copy.directory(), store.space_of(digest), {});
        ProgressMeter meter{"export", ProgressMeter::On::terminal};
        meter.begin(0, images::size_of(image.get()));
        images::Hash hash{images::HashKind::sha256};
        images::copy_sparse(image.get(), copy.fd(), hash, [&](std::uint64_t done) {
            interruption.check();
            meter.update(done);
        });
        if (hash.finish().hex != digest)
            throw Failure(fmt::format("image '{}': its file has become another", name),
                          "qvm image pull or import it again");
    }
    interruption.check();
    copy.keep();
}

}  // namespace

int image_pull(const ImagePullOptions& options) {
    PullRequest request;
    request.checksum = options.checksum;
    request.quiet = options.quiet;
    if (images::is_url(options.image)) {
        request.entry.name = images::image_name_of(images::file_name_of(options.image));
        request.entry.url = options.image;
        if (options.arch) request.entry.architecture = to_string(*options.arch);
    } else {
        const auto architecture = options.arch.value_or(host_architecture());
        const auto entry = find_in_catalogues(options.image, architecture);
        if (!entry)
            throw Failure(fmt::format("pull '{}': the catalogue has no image of that name for {}",
                                      options.image, to_string(architecture)),
                          "qvm image ls --catalogue");
        request.entry = *entry;
        request.entry.name = stored_name(entry->name, architecture, host_architecture());
    }
    if (options.name) request.entry.name = *options.name;
    (void)pull(open_store(find_directories()), request);
    print(request.entry.name + "\n");
    return status::ok;
}

int image_import(const ImageImportOptions& options) {
    const auto store = open_store(find_directories());
    auto [draft, record] = image_of_file(store, options.file, options.trust_backing);
    record.source = fs::absolute(options.file).string();
    if (options.arch) record.architecture = to_string(*options.arch);
    store.add(std::move(draft), options.name, record);
    print(options.name + "\n");
    return status::ok;
}

int image_tag(const ImageTagOptions& options) {
    const auto store = open_store(find_directories());
    auto [name, record] = image_in_store(store, options.image);
    const auto what = fmt::format("image '{}'", options.image);
    if (name.empty())
        record =
            naming(what, [&, digest = record.digest] { return record_of_blob(store, digest); });
    if (!store.give_name(options.name, record))
        throw Failure(what + ": its file is gone", "qvm image pull or import it again");
    print(options.name + "\n");
    return status::ok;
}

int image_export(const ImageExportOptions& options) {
    const auto store = open_store(find_directories());
    const auto digest = image_in_store(store, options.image).record.digest;
    naming(fmt::format("export '{}'", options.file.string()),
           [&] { export_image(store, options.image, digest, options.file); });
    return status::ok;
}

int image_rm(const ImageRmOptions& options) {
    Removal removal{find_directories()};
    removal.remove(options.names, options.force);
    return removal.exit_status();
}

int image_prune(const ImagePruneOptions& options) {
    const auto now = std::chrono::file_clock::now();
    Removal removal{find_directories()};
    if (removal.can_prune()) {
        if (options.older_than) removal.prune_names(now - *options.older_than);
        removal.prune_blobs();
    }
    removal.prune_downloads(now - options.older_than.value_or(std::chrono::milliseconds{0}));
    return removal.exit_status();
}

int image_verify(const ImageVerifyOptions& options) {
    const auto store = open_store(find_directories());
    const auto records = store.records();
    std::map<std::string, std::vector<std::string>> names;  // by digest
    int exit_status = status::ok;
    if (options.names.empty()) {
        for (const auto& digest : store.digests()) names[digest];
        for (const auto& [name, record] : records.known) names[record.digest].push_back(name);
        for (const auto& [name, failure] : records.broken) exit_status = say_failure(failure);
    }
    for (const auto& text : options.names) try {
            const auto [name, record] = image_in_store(store, text);
            names[record.digest].push_back(name.empty() ? text : name);
        } catch (const Failure& failure) {
            exit_status = say_failure(failure);
        }
    bool damaged = false;
    for (const auto& [digest, those] : names) {
        const auto damage = store.damage_of(digest);
        const auto title = those.empty() ? "sha256:" + digest : joined(those);
        print(fmt::format("{}: {}\n", title, damage.empty() ? "ok" : damage));
        damaged = damaged || !damage.empty();
    }
    if (!damaged) return exit_status;
    throw Failure("image verify: not all images are what they were",
                  "qvm image pull or import those again");
}

}  // namespace qvm
