#include "launcher/image_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <system_error>
#include <thread>
#include <utility>

#include "images/catalogue.h"
#include "images/sparse.h"
#include "images/url.h"
#include "launcher/failure.h"
#include "launcher/json_reader.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/progress.h"
#include "launcher/table.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;
using Time = std::chrono::file_clock::time_point;
using namespace std::chrono_literals;

namespace {

constexpr int version = 1;
constexpr std::size_t digest_length = 64;
constexpr auto lock_pause = 10ms;
constexpr int lock_tries = 100;  // before it is said who is waited for

bool is_digest(std::string_view text) {
    return text.size() == digest_length &&
           text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

/// Whether the descriptor's file is what has that path.
bool is_at(int fd, const fs::path& path) {
    struct stat ours {
    }, there{};
    return ::fstat(fd, &ours) == 0 && ::lstat(path.c_str(), &there) == 0 &&
           ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

bool try_flock(int fd) {
    return ::flock(fd, LOCK_EX | LOCK_NB) == 0;
}

Failure cannot_write(const fs::path& path) {
    const bool full = is_full(errno);
    return Failure{fmt::format("write '{}': {}", path.string(), reason()), full ? more_room : ""};
}

/// Names of the files in a directory; none where there is no directory.
std::vector<std::string> files_in(const fs::path& directory) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator entry{directory, error}, end; !error && entry != end;
         entry.increment(error))
        names.push_back(entry->path().filename().string());
    if (error && error != std::errc::no_such_file_or_directory)
        throw Failure(fmt::format("read directory '{}': {}", directory.string(), error.message()));
    std::sort(names.begin(), names.end());
    return names;
}

void remove_file(const fs::path& path) {
    std::error_code error;
    fs::remove(path, error);
    if (error) throw Failure(fmt::format("remove '{}': {}", path.string(), error.message()));
}

/// Of this boot: what was written before another may not be on disk.
std::string boot_id() {
    return read_file("/proc/sys/kernel/random/boot_id").value_or("");
}

/// Else errno says why not.
bool wait_for_lock(int fd, int operation, const fs::path& file) {
    for (int tries = 0; tries < lock_tries; ++tries) {
        if (::flock(fd, operation | LOCK_NB) == 0) return true;
        if (errno != EWOULDBLOCK && errno != EINTR) return false;
        std::this_thread::sleep_for(lock_pause);
    }
    say(fmt::format("qvm: another process has '{}' locked: waiting for it", file.string()));
    while (::flock(fd, operation) != 0)
        if (errno != EINTR) return false;
    return true;
}

/// -1 where it cannot be had, and errno says why.
UniqueFd take_lock(const fs::path& file, int access, int operation) {
    UniqueFd fd{::open(file.c_str(), access | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (fd && !wait_for_lock(fd.get(), operation, file)) fd.reset();
    return fd;
}

Failure cannot_lock(const fs::path& file) {
    return Failure{fmt::format("lock '{}': {}", file.string(), reason())};
}

}  // namespace

std::string to_text(const ImageRecord& record) {
    return json::serialize(json::object{{"version", version},
                                        {"digest", record.digest},
                                        {"format", record.format},
                                        {"virtual_size", record.virtual_size},
                                        {"size", record.size},
                                        {"architecture", record.architecture},
                                        {"source", record.source},
                                        {"checksum", record.checksum},
                                        {"checksum_source", record.checksum_source},
                                        {"signature", record.signature},
                                        {"created", record.created}}) +
           "\n";
}

ImageRecord parse_image_record(const std::string& text) {
    const auto object = parse_object(text);
    const JsonReader reader{object};
    const auto found = reader.number("version", 0);
    if (found != version)
        throw Failure(fmt::format("has version {}; this qvm knows {}", found, version));
    ImageRecord record;
    record.digest = reader.text("digest").value_or("");
    if (!is_digest(record.digest)) throw Failure("'digest' is no SHA-256");
    record.format = reader.text("format").value_or("");
    record.virtual_size = reader.number("virtual_size", 0);
    record.size = reader.number("size", 0);
    record.architecture = reader.text("architecture").value_or("");
    record.source = reader.text("source").value_or("");
    record.checksum = reader.text("checksum").value_or("");
    record.checksum_source = reader.text("checksum_source").value_or("");
    record.signature = reader.text("signature").value_or("");
    record.created = reader.text("created").value_or("");
    return record;
}

// --- a file that is being made -----------------------------------------------------------------

ImageDraft::ImageDraft(const fs::path& directory) {
    make_private_directory(directory);
    for (;;) {
        auto name = (directory / "XXXXXX").string();
        UniqueFd fd{::mkostemp(name.data(), O_CLOEXEC)};
        if (!fd) throw Failure(fmt::format("create '{}': {}", name, reason()));
        // A sweep may have come in between, to which it was nobody's.
        if (!try_flock(fd.get()) || !is_at(fd.get(), name)) continue;
        path_ = name;
        fd_ = std::move(fd);
        return;
    }
}

ImageDraft::~ImageDraft() {
    if (!path_.empty()) ::unlink(path_.c_str());
}

void ImageDraft::write(std::string_view text) const {
    if (!write_all(fd_.get(), text)) throw cannot_write(path_);
}

void ImageDraft::sync() const {
    if (::fsync(fd_.get()) != 0) throw cannot_write(path_);
}

void ImageDraft::move_to(const fs::path& target) {
    (void)rename_to(target, 0);
}

bool ImageDraft::move_to_new(const fs::path& target) {
    return rename_to(target, RENAME_NOREPLACE);
}

bool ImageDraft::rename_to(const fs::path& target, unsigned flags) {
    sync();
    const int failed = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target.c_str(), flags);
    if (failed != 0 && errno == EEXIST) return false;
    if (failed != 0) throw Failure(fmt::format("make '{}': {}", target.string(), reason()));
    path_.clear();
    sync_directory(target.parent_path());
    return true;
}

// --- what there is of a download ---------------------------------------------------------------

Download::Download(fs::path directory, const std::string& url, const std::function<void()>& waiting)
    : url_(url), path_(directory / images::checksum(url)) {
    make_private_directory(directory);
    do {
        // Whatever is read of it in between, what comes goes to its end.
        fd_.reset(
            ::open(path_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600));
        if (!fd_) throw Failure(fmt::format("create '{}': {}", path_.string(), reason()));
        if (try_flock(fd_.get())) continue;
        waiting();
        while (::flock(fd_.get(), LOCK_EX) != 0)
            if (errno != EINTR)
                throw Failure(fmt::format("lock '{}': {}", path_.string(), reason()));
    } while (!is_at(fd_.get(), path_));  // who had it has finished, or removed it
    const auto size = ::lseek(fd_.get(), 0, SEEK_END);
    partial_.size = static_cast<std::uint64_t>(std::max<off_t>(size, 0));
    try {
        const auto object = parse_object(read_file(note()).value_or(""));
        const JsonReader reader{object};
        if (reader.text("boot") == boot_id())
            partial_.validator = reader.text("validator").value_or("");
    } catch (const Failure&) {
        // It cannot go on, then.
    }
}

Download::~Download() {
    if (images::can_go_on(partial_)) return;
    try {
        discard();
    } catch (const Failure&) {
        // For the next, or for prune.
    }
}

void Download::begin(const std::string& validator) {
    // In this order, so that no bytes are taken for those of another file.
    if (::ftruncate(fd_.get(), 0) != 0) throw cannot_write(path_);
    partial_ = {0, validator};
    const auto text = json::serialize(json::object{
        {"url", images::without_secrets(url_)}, {"validator", validator}, {"boot", boot_id()}});
    // Nobody reads it meanwhile, and half of it is of no use to who does after us.
    const UniqueFd fd{
        ::open(note().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!fd || !write_all(fd.get(), text)) throw cannot_write(note());
}

void Download::append(std::string_view bytes) {
    if (!write_all(fd_.get(), bytes)) throw cannot_write(path_);
    partial_.size += bytes.size();
}

void Download::discard() {
    if (!fd_) return;
    partial_ = {};
    remove_file(note());
    remove_file(path_);
    fd_.reset();
}

ImageDraft Download::finish() {
    if (::fsync(fd_.get()) != 0) throw cannot_write(path_);
    remove_file(note());  // late, since without it nothing can go on
    return {path_, std::move(fd_)};
}

std::optional<std::uint64_t> Download::remove_old(const fs::path& directory, const std::string& key,
                                                  Time before) {
    const auto path = directory / key;
    const UniqueFd fd{::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC)};
    if (!fd || !try_flock(fd.get()) || !is_at(fd.get(), path)) return std::nullopt;
    std::error_code error;
    if (fs::last_write_time(path, error) > before || error) return std::nullopt;
    const auto space = images::space_of(fd.get());
    // The file is the last, by which its note is found.
    remove_file(path.string() + note_suffix);
    remove_file(path);
    return space;
}

// --- the store ---------------------------------------------------------------------------------

bool ImageStore::has_blob(const fs::path& path) const {
    std::error_code error;
    const auto file = fs::weakly_canonical(path, error);
    return !error && fs::equivalent(file.parent_path(), blobs(), error);
}

std::uint64_t ImageStore::space_of(const std::string& digest) const {
    const UniqueFd fd{::open(blob(digest).c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)};
    return fd ? images::space_of(fd.get()) : 0;
}

std::vector<std::string> ImageStore::names() const {
    auto names = files_in(directory_ / "name");
    std::erase_if(names, [](const auto& name) { return !images::is_image_name(name); });
    return names;
}

std::vector<std::string> ImageStore::digests() const {
    auto names = files_in(blobs());
    std::erase_if(names, [](const auto& name) { return !is_digest(name); });
    return names;
}

ImageRecords ImageStore::records() const {
    ImageRecords records;
    for (const auto& name : names()) try {
            if (auto record = find(name)) records.known[name] = std::move(*record);
        } catch (const Failure& failure) {
            records.broken.emplace(name, failure);
        }
    return records;
}

std::vector<std::string> ImageRecords::names_of(const std::string& digest) const {
    std::vector<std::string> names;
    for (const auto& [name, record] : known)
        if (record.digest == digest) names.push_back(name);
    return names;
}

bool ImageStore::has(const std::string& name) const {
    std::error_code ignored;
    return images::is_image_name(name) && fs::exists(fs::symlink_status(record_of(name), ignored));
}

std::optional<ImageRecord> ImageStore::find(const std::string& name) const {
    if (!images::is_image_name(name)) return std::nullopt;
    const auto file = record_of(name);
    struct stat status {};
    try {
        // A pipe has an end that one would wait for.
        if (::lstat(file.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
            throw Failure("is no regular file");
        const auto text = read_file(file);
        if (!text && errno == ENOENT) return std::nullopt;
        if (!text) throw Failure("cannot be read: " + reason());
        return parse_image_record(*text);
    } catch (const Failure& failure) {
        const bool ours = ::access(file.parent_path().c_str(), W_OK) == 0;
        throw Failure(fmt::format("image '{}': its record {}", name, failure.what()),
                      ours ? "qvm image rm " + name : "");
    }
}

ImageRecord ImageStore::read(const std::string& name) const {
    if (auto record = find(name)) return *record;
    throw Failure(fmt::format("image '{}': there is none", name), "qvm image ls");
}

std::optional<ImageRecord> ImageStore::find_checked(const std::string& checksum) const {
    for (const auto& [name, record] : records().known)
        if ((record.checksum == checksum || "sha256:" + record.digest == checksum) &&
            fs::exists(blob(record.digest)))
            return record;
    return std::nullopt;
}

void ImageStore::add(ImageDraft draft, const std::string& name, const ImageRecord& record) const {
    make_private_directory(blobs());
    if (::fchmod(draft.fd(), 0444) != 0) throw cannot_write(draft.path());
    draft.sync();  // which takes its time, while nobody need wait
    auto lock = share();
    // One that is there stays, since VMs know it by its inode and its times; but not if it has
    // become another, and nobody else has replaced it.
    const auto target = blob(record.digest);
    if (!draft.move_to_new(target) && !is_whole(record.digest)) {
        lock.reset();
        lock = this->lock();
        if (!is_whole(record.digest)) draft.move_to(target);
    }
    write_record(name, record);
}

bool ImageStore::give_name(const std::string& name, const ImageRecord& record) const {
    const auto lock = share();
    if (!fs::exists(blob(record.digest))) return false;
    write_record(name, record);
    return true;
}

void ImageStore::write_record(const std::string& name, const ImageRecord& record) const {
    make_private_directory(directory_ / "name");
    ImageDraft draft{drafts()};
    draft.write(to_text(record));
    draft.move_to(record_of(name));
}

void ImageStore::note_use(const std::string& name) const noexcept {
    ::utimensat(AT_FDCWD, record_of(name).c_str(), nullptr, 0);
}

Time ImageStore::last_use(const std::string& name) const {
    std::error_code error;
    const auto time = fs::last_write_time(record_of(name), error);
    return error ? Time::clock::now() : time;
}

void ImageStore::remove_name(const std::string& name) const {
    remove_file(record_of(name));
    sync_directory(directory_ / "name");
}

void ImageStore::remove_blob(const std::string& digest) const {
    remove_file(blob(digest));
}

UniqueFd ImageStore::share() const {
    auto fd = take_lock(lock_file(), O_RDONLY, LOCK_SH);
    // There is nothing in it, or it is somebody else's, who is not held up by us.
    const bool cannot_be = errno == ENOENT || errno == EACCES || errno == EROFS;
    if (!fd && !cannot_be) throw cannot_lock(lock_file());
    return fd;
}

UniqueFd ImageStore::lock() const {
    make_private_directory(directory_);
    auto fd = take_lock(lock_file(), O_RDWR, LOCK_EX);
    if (!fd) throw cannot_lock(lock_file());
    return fd;
}

std::string ImageStore::damage_of(const std::string& digest) const {
    const UniqueFd fd{::open(blob(digest).c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)};
    if (!fd) return errno == ENOENT ? "its file is gone" : "its file cannot be read: " + reason();
    try {
        ProgressMeter meter{"reading " + digest.substr(0, 12), ProgressMeter::On::terminal};
        meter.begin(0, images::size_of(fd.get()));
        images::Hash hash{images::HashKind::sha256};
        images::hash_file(fd.get(), hash, [&](std::uint64_t done) { meter.update(done); });
        return hash.finish().hex == digest ? "" : "its file has become another";
    } catch (const std::system_error& error) {
        return "its file cannot be read: " + error.code().message();
    }
}

std::size_t ImageStore::sweep() const {
    std::size_t count = 0;
    for (const auto& name : files_in(drafts())) {
        const auto path = drafts() / name;
        const UniqueFd fd{::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC)};
        // Whoever made it has put it in its place by now, or removed it, if it is not there.
        if (fd && try_flock(fd.get()) && is_at(fd.get(), path) && ::unlink(path.c_str()) == 0)
            ++count;
    }
    return count;
}

std::vector<std::uint64_t> ImageStore::remove_downloads(Time before) const {
    std::vector<std::uint64_t> removed;
    for (const auto& name : files_in(downloads())) {
        const auto key = name.substr(0, digest_length);
        if (name == key)
            if (const auto space = Download::remove_old(downloads(), key, before))
                removed.push_back(*space);
        // What a process that was killed has left of its note.
        if (name != key && !fs::exists(downloads() / key)) remove_file(downloads() / name);
    }
    return removed;
}

void check_space(const fs::path& directory, std::uint64_t bytes, const std::string& hint) {
    struct statvfs status {};
    if (::statvfs(directory.c_str(), &status) != 0)
        throw Failure(fmt::format("look at '{}': {}", directory.string(), reason()));
    const auto free = static_cast<std::uint64_t>(status.f_bavail) * status.f_frsize;
    if (bytes > free)
        throw Failure(fmt::format("it takes {}, and '{}' has {} left", size_text(bytes),
                                  directory.string(), size_text(free)),
                      hint);
}

}  // namespace qvm
