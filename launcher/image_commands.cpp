// image pull, import, tag, export, rm, prune, verify.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "images/error.h"
#include "images/exported_file.h"
#include "images/sparse.h"
#include "images/url.h"
#include "launcher/catalogues.h"
#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/image_draft.h"
#include "launcher/image_store.h"
#include "launcher/image_users.h"
#include "launcher/interruption.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "launcher/pull.h"
#include "launcher/table.h"

namespace qvm {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

constexpr auto download_patience = 24h;  // with one that nobody goes on with

ImageStore open_store(const Directories& directories) {
    return ImageStore{directories.images()};
}

/// What the image's only name cannot be taken away for; empty where it can.
std::vector<ImageUser> in_the_way(const ImageUsers& users, const std::string& digest, bool force) {
    const auto found = users.find(digest);
    if (found == users.end()) return {};
    auto those = found->second;
    if (force) std::erase_if(those, [](const auto& user) { return !user.needs_it(); });
    return those;
}

std::size_t count_names(const ImageStore& store, const std::string& digest) {
    std::size_t count = 0;
    for (const auto& name : store.names())
        if (const auto record = store.find(name); record && record->digest == digest) ++count;
    return count;
}

/// Of an image that there is; nothing where its record cannot be read.
std::optional<std::string> digest_of(const ImageStore& store, const std::string& name) {
    const auto names = store.names();
    if (!std::binary_search(names.begin(), names.end(), name)) return store.read(name).digest;
    try {
        return store.read(name).digest;
    } catch (const Failure&) {
        return std::nullopt;
    }
}

void remove_image(const ImageStore& store, const std::string& name, const ImageUsers& users,
                  bool force) {
    const auto known = digest_of(store, name);
    if (!known) return store.remove_name(name);
    const auto& digest = *known;
    const bool last = count_names(store, digest) == 1;
    const auto those = last ? in_the_way(users, digest, force) : std::vector<ImageUser>{};
    if (!those.empty()) {
        const bool needed = std::any_of(those.begin(), those.end(),
                                        [](const auto& user) { return user.needs_it(); });
        throw Failure(
            fmt::format("image '{}': is in use by {}", name, joined(names_of(those))),
            needed ? "those are of no use without it: remove them first"
                   : fmt::format("qvm image rm -f {}: those that run keep it to their end", name));
    }
    store.remove_name(name);
    if (last) store.remove_blob(digest);
}

/// What prune does, and says.
class Pruning {
  public:
    explicit Pruning(const Directories& directories)
        : store_(open_store(directories)),
          lock_(store_.lock()),
          users_(image_users(directories, store_, Unreadable::is_an_error)) {}

    void remove_names(std::chrono::file_clock::time_point before) {
        for (const auto& name : store_.names()) {
            const auto record = store_.find(name);
            if (!record || users_.contains(record->digest) || store_.last_use(name) >= before)
                continue;
            store_.remove_name(name);
            print(fmt::format("image '{}'\n", name));
        }
    }
    void remove_blobs() {
        for (const auto& digest : store_.nameless()) {
            if (users_.contains(digest)) continue;
            const auto space = store_.space_of(digest);
            store_.remove_blob(digest);
            print(fmt::format("{} of sha256:{}\n", size_text(space), digest));
        }
    }
    void remove_downloads(std::chrono::file_clock::time_point before) {
        if (const auto count = store_.remove_downloads(before); count > 0)
            print(fmt::format("{} downloads\n", count));
    }

  private:
    ImageStore store_;
    UniqueFd lock_;
    ImageUsers users_;
};

/// Why an image is not what it was; empty where it is.
std::string damage_of(const ImageStore& store, const std::string& digest) {
    const auto file = store.blob(digest);
    if (!fs::exists(file)) return fmt::format("'{}' is gone", file.string());
    if (!store.is_whole(digest)) return fmt::format("'{}' has become another file", file.string());
    return {};
}

/// What is copied is compared with what it has to be; what is shared is what the store has.
void export_image(const ImageStore& store, const std::string& digest, const fs::path& file) {
    const auto blob = store.blob(digest);
    const UniqueFd image{::open(blob.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!image) throw std::system_error(errno, std::generic_category());
    const Interruption interruption;
    const images::ExportedFile copy{file, 0666};
    if (!images::share_blocks(image.get(), copy.fd())) {
        check_space(copy.path().parent_path(), store.space_of(digest), {});
        ProgressMeter meter{"export", ProgressMeter::On::terminal};
        meter.begin(0, fs::file_size(blob));
        images::Hash hash{images::HashKind::sha256};
        images::copy_sparse(image.get(), copy.fd(), hash, [&](std::uint64_t done) {
            interruption.check();
            meter.update(done);
        });
        if (hash.finish().hex != digest)
            throw Failure(fmt::format("'{}' has become another file", blob.string()),
                          "qvm image verify");
    }
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
    const auto name = name_in_store(store, options.image);
    if (!store.give_name(options.name, store.read(name)))
        throw Failure(fmt::format("image '{}': is gone", name), "qvm image verify");
    print(options.name + "\n");
    return status::ok;
}

int image_export(const ImageExportOptions& options) {
    const auto store = open_store(find_directories());
    const auto digest = store.read(name_in_store(store, options.image)).digest;
    try {
        export_image(store, digest, options.file);
    } catch (const Failure& failure) {
        throw Failure(fmt::format("export '{}': {}", options.file.string(), failure.what()),
                      failure.hint(), failure.exit_status());
    } catch (const images::Error& error) {
        throw Failure(fmt::format("export '{}': {}", options.file.string(), error.what()));
    } catch (const std::system_error& error) {
        throw Failure(
            fmt::format("export '{}': {}", options.file.string(), error.code().message()));
    }
    return status::ok;
}

int image_rm(const ImageRmOptions& options) {
    const auto directories = find_directories();
    const auto store = open_store(directories);
    const auto lock = store.lock();
    const auto users = image_users(directories, store, Unreadable::is_an_error);
    for (const auto& name : options.names) {
        remove_image(store, name, users, options.force);
        print(name + "\n");
    }
    return status::ok;
}

int image_prune(const ImagePruneOptions& options) {
    const auto now = std::chrono::file_clock::now();
    Pruning pruning{find_directories()};
    if (options.older_than) pruning.remove_names(now - *options.older_than);
    pruning.remove_blobs();
    pruning.remove_downloads(
        now - options.older_than.value_or(std::chrono::milliseconds{download_patience}));
    return status::ok;
}

int image_verify(const ImageVerifyOptions& options) {
    const auto store = open_store(find_directories());
    std::map<std::string, std::vector<std::string>> names;  // by digest
    if (options.names.empty())
        for (const auto& digest : store.digests()) names[digest];
    for (const auto& text : options.names.empty() ? store.names() : options.names) {
        const auto name = options.names.empty() ? text : name_in_store(store, text);
        if (const auto record = store.find(name)) names[record->digest].push_back(name);
    }
    bool damaged = false;
    for (const auto& [digest, those] : names) {
        const auto damage = damage_of(store, digest);
        const auto title = those.empty() ? "sha256:" + digest : joined(those);
        print(fmt::format("{}: {}\n", title, damage.empty() ? "ok" : damage));
        damaged = damaged || !damage.empty();
    }
    if (!damaged) return status::ok;
    throw Failure("image verify: not all images are what they were",
                  "qvm image pull or import those again");
}

}  // namespace qvm
