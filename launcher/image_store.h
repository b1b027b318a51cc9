#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "images/hash.h"
#include "images/transfer.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "netns/unique_fd.h"

/// Images that qvm keeps: files named after what is in them, and names that stand for them.
///
///     <data>/image/blob/DIGEST     SHA-256 of the file, which nobody ever writes to
///     <data>/image/name/NAME       an ImageRecord; when it was written is when it was last used
///     <data>/image/draft/XXXXXX    what is not finished; locked while somebody is at work on it
///     <data>/image/download/KEY    what there is of a file that is pulled; locked likewise
///     <data>/image/lock            who uses or adds an image shares it, who removes has it alone
///
/// Everything becomes visible by one rename, once it is on disk. A process that is killed leaves a
/// draft, which is swept, a download, which goes on, or a blob without a name, which is pruned.
namespace qvm {

/// What a name stands for.
struct ImageRecord {
    std::string digest;              ///< of the blob
    std::string format;              ///< "qcow2" or "raw"
    std::uint64_t virtual_size = 0;  ///< bytes that a guest sees
    std::uint64_t size = 0;          ///< bytes of the file
    std::string architecture{};      ///< empty: not known
    std::string source{};            ///< a URL, or a path
    std::string checksum{};         ///< "sha512:HEX" that the source had; empty: it was not checked
    std::string checksum_source{};  ///< who said so: a URL, or an option
    std::string signature{};        ///< of that; empty: there is none
    std::string created{};          ///< RFC 3339, UTC: when it was added

    bool operator==(const ImageRecord&) const = default;
};

/// As JSON and back. Reading throws Failure with what is wrong. Pure.
std::string to_text(const ImageRecord& record);
ImageRecord parse_image_record(const std::string& text);

/// A file that is being made; it goes with this object, unless it was put in its place.
class ImageDraft {
  public:
    /// A new one, empty, in that directory, which is made. Throws Failure.
    explicit ImageDraft(const std::filesystem::path& directory);
    /// What is a file already, and locked by this descriptor.
    ImageDraft(std::filesystem::path path, UniqueFd fd)
        : path_(std::move(path)), fd_(std::move(fd)) {}
    ImageDraft(ImageDraft&& other) noexcept
        : path_(std::exchange(other.path_, {})), fd_(std::move(other.fd_)) {}
    ImageDraft& operator=(ImageDraft&&) = delete;
    ~ImageDraft();

    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    void write(std::string_view text) const;
    /// What is in it is on disk when it returns. Throws Failure.
    void sync() const;
    /// Puts it in its place, on disk when it returns, instead of what is there. Throws Failure.
    void move_to(const std::filesystem::path& target);
    /// The same where there is nothing; else false, and it stays a draft.
    [[nodiscard]] bool move_to_new(const std::filesystem::path& target);

  private:
    bool rename_to(const std::filesystem::path& target, unsigned flags);

    std::filesystem::path path_;  ///< empty once it is in its place
    UniqueFd fd_;
};

/// What there is of a file that is pulled, which is there for the next who pulls it, too.
class Download {
  public:
    /// In that directory. While another process has it this one waits, and calls `waiting` first.
    /// Throws Failure.
    Download(std::filesystem::path directory, const std::string& url,
             const std::function<void()>& waiting);
    Download(const Download&) = delete;
    Download& operator=(const Download&) = delete;
    /// Of one that cannot go on nothing stays: a full disk would remain so.
    ~Download();

    [[nodiscard]] const images::Partial& partial() const noexcept { return partial_; }
    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// Empties it: what comes now is of a file with that validator.
    void begin(const std::string& validator);
    void append(std::string_view bytes);
    /// Removes it, where it is still one.
    void discard();
    /// It is all there, and a draft from now on, and no download any more.
    ImageDraft finish();

    /// Removes a file of that name below `directory` that nobody is at work on, and nobody was
    /// since `before`; the bytes that it took, or nothing.
    static std::optional<std::uint64_t> remove_old(const std::filesystem::path& directory,
                                                   const std::string& key,
                                                   std::chrono::file_clock::time_point before);

  private:
    [[nodiscard]] std::filesystem::path note() const { return path_.string() + note_suffix; }

    static constexpr const char* note_suffix = ".json";

    std::string url_;
    std::filesystem::path path_;
    UniqueFd fd_;
    images::Partial partial_;
};

/// What all names stand for.
struct ImageRecords {
    std::map<std::string, ImageRecord> known;  ///< by name
    std::map<std::string, Failure> broken;     ///< why one cannot be read; it may be of any image

    /// The names of an image.
    [[nodiscard]] std::vector<std::string> names_of(const std::string& digest) const;
};

class ImageStore {
  public:
    explicit ImageStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

    [[nodiscard]] std::filesystem::path blobs() const { return directory_ / "blob"; }
    [[nodiscard]] std::filesystem::path drafts() const { return directory_ / "draft"; }
    [[nodiscard]] std::filesystem::path downloads() const { return directory_ / "download"; }
    [[nodiscard]] std::filesystem::path blob(const std::string& digest) const {
        return blobs() / digest;
    }

    /// Whether a path leads to a blob, which nobody may write to.
    [[nodiscard]] bool has_blob(const std::filesystem::path& path) const;

    /// What a blob takes on disk, in bytes; 0 where it is gone.
    [[nodiscard]] std::uint64_t space_of(const std::string& digest) const;

    /// All names, and the digests of all blobs, sorted.
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] std::vector<std::string> digests() const;
    [[nodiscard]] ImageRecords records() const;
    [[nodiscard]] bool has(const std::string& name) const;
    /// What that name stands for; nothing where there is none. Throws Failure where it cannot be
    /// read.
    [[nodiscard]] std::optional<ImageRecord> find(const std::string& name) const;
    /// The same; throws Failure where there is none, too.
    [[nodiscard]] ImageRecord read(const std::string& name) const;
    /// What has that checksum ("sha512:HEX"), by itself or where it came from, and is still there.
    [[nodiscard]] std::optional<ImageRecord> find_checked(const std::string& checksum) const;

    /// Makes the draft the blob of `record.digest`, and gives it that name; another image that had
    /// the name has it no longer. Throws Failure.
    void add(ImageDraft draft, const std::string& name, const ImageRecord& record) const;
    /// Gives an image another name; false where it is not there any more. Throws Failure.
    [[nodiscard]] bool give_name(const std::string& name, const ImageRecord& record) const;
    /// Notes that the name is used now, and when it was last.
    void note_use(const std::string& name) const noexcept;
    [[nodiscard]] std::chrono::file_clock::time_point last_use(const std::string& name) const;

    /// Takes a name away, or a blob. The caller has the lock alone. Throws Failure.
    void remove_name(const std::string& name) const;
    void remove_blob(const std::string& digest) const;

    /// The store's lock, until it is closed: no image is removed; or, nobody begins to use or to
    /// add one. Whom it waits for, after a second, is said. Of a store that this process cannot
    /// write to nothing may be shared. Throws Failure.
    [[nodiscard]] UniqueFd share() const;
    [[nodiscard]] UniqueFd lock() const;

    /// What is wrong with a blob ("is gone"); empty where it is what its name says. On a terminal
    /// it is shown how far that is.
    [[nodiscard]] std::string damage_of(const std::string& digest) const;
    [[nodiscard]] bool is_whole(const std::string& digest) const {
        return damage_of(digest).empty();
    }

    /// Removes drafts that nobody is at work on any more; how many.
    [[nodiscard]] std::size_t sweep() const;
    /// Removes downloads that nobody is at work on, and nobody was since `before`; the bytes that
    /// each took.
    [[nodiscard]] std::vector<std::uint64_t> remove_downloads(
        std::chrono::file_clock::time_point before) const;

  private:
    [[nodiscard]] std::filesystem::path record_of(const std::string& name) const {
        return directory_ / "name" / name;
    }
    [[nodiscard]] std::filesystem::path lock_file() const { return directory_ / "lock"; }
    void write_record(const std::string& name, const ImageRecord& record) const;

    std::filesystem::path directory_;
};

/// What helps where there is no room in the store.
inline constexpr const char* more_room = "qvm image prune, or another QVM_DATA_DIR";

/// Throws Failure, with the reason alone and this hint, where `bytes` more do not fit on the file
/// system of `directory`, which exists.
void check_space(const std::filesystem::path& directory, std::uint64_t bytes,
                 const std::string& hint);

}  // namespace qvm
