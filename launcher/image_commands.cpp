// image pull, import, ls, inspect, tag, export, rm, prune, verify.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <set>
#include <system_error>

#include "images/sparse.h"
#include "launcher/catalogues.h"
#include "launcher/commands.h"
#include "launcher/definition.h"
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/image_draft.h"
#include "launcher/image_store.h"
#include "launcher/image_users.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "launcher/pull.h"
#include "launcher/table.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;

namespace {

constexpr auto download_patience = 24h;  // with one that nobody goes on with

using Users = std::map<std::string, std::vector<ImageUser>>;

ImageStore open_store(const Directories& directories) {
    return ImageStore{directories.images()};
}

/// What stat(2) says of a file; all is 0 where it is gone.
struct stat status_of(const fs::path& file) {
    struct stat status {};
    ::stat(file.c_str(), &status);
    return status;
}

/// What it takes on disk.
std::uint64_t space_of(const fs::path& file) {
    return static_cast<std::uint64_t>(status_of(file).st_blocks) * 512;
}

/// Each once, whatever it does with the image.
std::vector<std::string> names_of(const std::vector<ImageUser>& users) {
    std::set<std::string> names;
    for (const auto& user : users) names.insert(to_string(user));
    return {names.begin(), names.end()};
}

std::string time_text(std::chrono::file_clock::time_point time) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
        std::chrono::file_clock::to_sys(time).time_since_epoch());
    return timestamp(seconds.count());
}

json::value or_null(const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
}

/// What `ls --json` and `inspect` say of one.
json::object describe(const ImageStore& store, const std::string& name, const ImageRecord& record,
                      const Users& users) {
    const auto file = store.blob(record.digest);
    const auto found = users.find(record.digest);
    json::value checked = nullptr;
    if (!record.checksum.empty())
        checked = json::object{{"checksum", record.checksum},
                               {"source", record.checksum_source},
                               {"signature", or_null(record.signature)}};
    return {{"name", name},
            {"digest", "sha256:" + record.digest},
            {"format", record.format},
            {"virtual_size", record.virtual_size},
            {"size", record.size},
            {"disk_usage", space_of(file)},
            {"architecture", or_null(record.architecture)},
            {"source", record.source},
            {"checked", std::move(checked)},
            {"created", record.created},
            {"last_used", time_text(store.last_use(name))},
            {"used_by", json::value_from(found == users.end() ? std::vector<std::string>{}
                                                              : names_of(found->second))},
            {"path", file.string()}};
}

/// The same of what has lost its name, of which nothing else is known.
json::object describe(const ImageStore& store, const std::string& digest, const Users& users) {
    auto object = describe(store, "", {.digest = digest, .format = {}}, users);
    object["size"] = status_of(store.blob(digest)).st_size;
    for (const char* key : {"name", "format", "virtual_size", "source", "created", "last_used"})
        object[key] = nullptr;
    return object;
}

/// "-" for what is null.
std::string text_at(const json::object& object, const char* key) {
    const auto& value = object.at(key);
    return value.is_string() ? std::string{value.get_string()} : "-";
}

std::string size_at(const json::object& object, const char* key) {
    const auto& value = object.at(key);
    return value.is_null() ? "-" : size_text(value.to_number<std::uint64_t>());
}

void print_table(const json::array& images) {
    constexpr std::size_t prefix = 7, shown = 12;  // of "sha256:" and of the digits
    std::vector<std::vector<std::string>> rows{
        {"NAME", "DIGEST", "FORMAT", "SIZE", "ON DISK", "LAST USED", "USED BY"}};
    for (const auto& value : images) {
        const auto& image = value.get_object();
        const auto users = json::value_to<std::vector<std::string>>(image.at("used_by"));
        const auto used = age_of(text_at(image, "last_used"));
        rows.push_back({text_at(image, "name"), text_at(image, "digest").substr(prefix, shown),
                        text_at(image, "format"), size_at(image, "virtual_size"),
                        size_at(image, "disk_usage"), used.empty() ? "-" : used + " ago",
                        users.empty() ? "-" : joined(users)});
    }
    print(to_table(rows, use_colour()));
}

json::object to_json(const images::CatalogueEntry& entry) {
    return {{"name", entry.name},
            {"aliases", json::value_from(entry.aliases)},
            {"architecture", entry.architecture},
            {"url", entry.url},
            {"checksums", or_null(entry.checksums)},
            {"signature", or_null(entry.signature)},
            {"keyring", or_null(entry.keyring)},
            {"keyring_package", or_null(entry.keyring_package)}};
}

/// Those for this host; as JSON all.
int list_catalogue(const ImageLsOptions& options) {
    const auto catalogue = read_catalogues();
    if (options.json) {
        json::array array;
        for (const auto& entry : catalogue) array.push_back(to_json(entry));
        print(json::serialize(array) + "\n");
        return status::ok;
    }
    const auto architecture = own_architecture();
    std::vector<std::vector<std::string>> rows;
    if (!options.names) rows.push_back({"NAME", "ALSO", "URL"});
    for (const auto& entry : catalogue) {
        // A later one of the same name is the one that counts.
        if (images::find_image(catalogue, entry.name, architecture) != entry) continue;
        if (options.names)
            rows.push_back({entry.name});
        else
            rows.push_back(
                {entry.name, entry.aliases.empty() ? "-" : joined(entry.aliases), entry.url});
    }
    print(to_table(rows, !options.names && use_colour()));
    return status::ok;
}

/// What the image's only name cannot be taken away for; empty where it can.
std::vector<ImageUser> in_the_way(const Users& users, const std::string& digest, bool force) {
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

void remove_image(const ImageStore& store, const std::string& name, const Users& users,
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
          users_(image_users(directories, store_)) {}

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
            const auto space = space_of(store_.blob(digest));
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
    Users users_;
};

/// Why an image is not what it was; empty where it is.
std::string damage_of(const ImageStore& store, const std::string& digest) {
    const auto file = store.blob(digest);
    if (!fs::exists(file)) return fmt::format("'{}' is gone", file.string());
    if (!store.is_whole(digest)) return fmt::format("'{}' has become another file", file.string());
    return {};
}

/// A new file beside `file`, which takes its place; it goes with this object otherwise.
class ExportedFile {
  public:
    explicit ExportedFile(fs::path file) : file_(std::move(file)), aside_(fs::absolute(file_)) {
        aside_.replace_filename("." + aside_.filename().string());
        fd_.reset(
            ::open(aside_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666));
        if (!fd_) throw std::system_error(errno, std::generic_category());
    }
    ExportedFile(const ExportedFile&) = delete;
    ExportedFile& operator=(const ExportedFile&) = delete;
    ~ExportedFile() { ::unlink(aside_.c_str()); }

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    [[nodiscard]] fs::path directory() const { return aside_.parent_path(); }
    void keep() const { fs::rename(aside_, file_); }

  private:
    fs::path file_, aside_;
    UniqueFd fd_;
};

/// What is copied is compared with what it has to be; what is shared is what the store has.
void export_image(const ImageStore& store, const std::string& digest, const fs::path& file) {
    const auto blob = store.blob(digest);
    const UniqueFd image{::open(blob.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!image) throw std::system_error(errno, std::generic_category());
    const BlockedSignals blocked;  // nothing half written stays
    const ExportedFile copy{file};
    if (!images::share_blocks(image.get(), copy.fd())) {
        check_space(copy.directory(), space_of(blob));
        ProgressMeter meter{"export", ProgressMeter::On::terminal};
        meter.begin(0, fs::file_size(blob));
        images::Hash hash{images::HashKind::sha256};
        images::copy_sparse(image.get(), copy.fd(), hash,
                            [&](std::uint64_t done) { meter.update(done); });
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
    } else {
        const auto entry = images::find_image(read_catalogues(), options.image, own_architecture());
        if (!entry)
            throw Failure(fmt::format("pull '{}': the catalogue has no image of that name for {}",
                                      options.image, own_architecture()),
                          "qvm image ls --catalogue");
        request.entry = *entry;
    }
    if (options.name) request.entry.name = *options.name;
    (void)pull(open_store(find_directories()), request);
    print(request.entry.name + "\n");
    return status::ok;
}

int image_import(const ImageImportOptions& options) {
    const auto store = open_store(find_directories());
    auto [draft, record] = image_of_file(store, options.file);
    record.source = fs::absolute(options.file).string();
    store.add(std::move(draft), options.name, record);
    print(options.name + "\n");
    return status::ok;
}

int image_ls(const ImageLsOptions& options) {
    if (options.catalogue) return list_catalogue(options);
    const auto directories = find_directories();
    const auto store = open_store(directories);
    if (options.names) {
        for (const auto& name : store.names()) print(name + "\n");
        return status::ok;
    }
    const auto users = image_users(directories, store);
    json::array array;
    bool broken = false;
    for (const auto& name : store.names()) try {
            if (const auto record = store.find(name))
                array.push_back(describe(store, name, *record, users));
        } catch (const Failure& failure) {
            say(fmt::format("qvm: {}", failure.what()));  // one must not hide the others
            broken = true;
        }
    if (!broken)
        for (const auto& digest : store.nameless()) array.push_back(describe(store, digest, users));
    if (options.json)
        print(json::serialize(array) + "\n");
    else
        print_table(array);
    return status::ok;
}

int image_inspect(const ImageInspectOptions& options) {
    const auto directories = find_directories();
    const auto store = open_store(directories);
    const auto users = image_users(directories, store);
    json::array array;
    for (const auto& text : options.names) {
        const auto name = name_in_store(store, text);
        array.push_back(describe(store, name, store.read(name), users));
    }
    print(pretty(array) + "\n");
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
                      failure.hint());
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
    const auto users = image_users(directories, store);
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
