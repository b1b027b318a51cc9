#include "launcher/image_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;
using Clock = std::chrono::file_clock;

namespace {

std::string text_of(const fs::path& file) {
    return read_file(file).value_or("(cannot be read)");
}

ImageRecord record_of(const std::string& contents) {
    return {.digest = images::checksum(contents),
            .format = "raw",
            .virtual_size = 512,
            .size = contents.size(),
            .source = "/images/x",
            .created = "2026-01-31T12:00:00Z"};
}

void add(const ImageStore& store, const std::string& name, const std::string& contents) {
    ImageDraft draft{store.drafts()};
    draft.write(contents);
    store.add(std::move(draft), name, record_of(contents));
}

std::size_t files_in(const fs::path& directory) {
    return fs::exists(directory)
               ? static_cast<std::size_t>(std::distance(fs::directory_iterator{directory}, {}))
               : 0;
}

ino_t inode_of(const fs::path& file) {
    struct stat status {};
    REQUIRE(::stat(file.c_str(), &status) == 0);
    return status.st_ino;
}

}  // namespace

TEST_CASE("a record is read as it was written") {
    auto record = record_of("abc");
    CHECK(parse_image_record(to_text(record)) == record);
    record.architecture = "x86_64";
    record.checksum = "sha512:00";
    record.checksum_source = "http://x/SUMS";
    record.signature = "good";
    CHECK(parse_image_record(to_text(record)) == record);
    CHECK_THROWS_WITH(parse_image_record("{}"), "has version 0; this qvm knows 1");
    record.digest = "../../etc/passwd";
    CHECK_THROWS_WITH(parse_image_record(to_text(record)), "'digest' is no SHA-256");
}

TEST_CASE("a store that is not there is empty, and looking at it makes nothing") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    CHECK(store.names().empty());
    CHECK(store.digests().empty());
    CHECK(!store.find("a"));
    CHECK(store.sweep() == 0);
    CHECK_THROWS_WITH(store.read("a"), "image 'a': there is none");
    CHECK(!fs::exists(directory.path / "image"));
}

TEST_CASE("an image is kept once, under all its names") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one:1", "abc");
    const auto digest = images::checksum("abc");
    const auto inode = inode_of(store.blob(digest));
    add(store, "two", "abc");
    CHECK(store.names() == std::vector<std::string>{"one:1", "two"});
    CHECK(store.digests() == std::vector<std::string>{digest});
    CHECK(text_of(store.blob(digest)) == "abc");
    CHECK(inode_of(store.blob(digest)) == inode);
    CHECK((fs::status(store.blob(digest)).permissions() & fs::perms::mask) ==
          (fs::perms::owner_read | fs::perms::group_read | fs::perms::others_read));
    CHECK(store.read("two") == record_of("abc"));
    CHECK(files_in(store.drafts()) == 0);
    // A name moves, and its image stays.
    add(store, "two", "other");
    CHECK(store.read("two").digest == images::checksum("other"));
    CHECK(store.digests().size() == 2);
}

TEST_CASE("a draft replaces nothing where it has to be new") {
    const Temporary directory;
    const auto file = directory.path / "file";
    ImageDraft one{directory.path}, other{directory.path};
    CHECK(one.move_to_new(file));
    const auto inode = inode_of(file);
    CHECK(!other.move_to_new(file));
    CHECK(inode_of(file) == inode);
    CHECK(fs::exists(other.path()));
}

TEST_CASE("what is wrong with an image is told") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    const auto digest = images::checksum("abc");
    CHECK(store.damage_of(digest).empty());
    fs::permissions(store.blob(digest), fs::perms::owner_all);
    std::ofstream{store.blob(digest)} << "xyz";
    CHECK(store.damage_of(digest) == "its file has become another");
    store.remove_blob(digest);
    CHECK(store.damage_of(digest) == "its file is gone");
    fs::create_directory(store.blob(digest));
    CHECK(store.damage_of(digest) == "its file cannot be read: Is a directory");
}

TEST_CASE("a record that cannot be read hides no other") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    add(store, "two", "abc");
    std::ofstream{directory.path / "image/name/broken"} << "{";
    const auto records = store.records();
    CHECK(records.names_of(images::checksum("abc")) == std::vector<std::string>{"one", "two"});
    REQUIRE(records.broken.size() == 1);
    CHECK(records.broken.at("broken").what() ==
          std::string{"image 'broken': its record is not a JSON object"});
    CHECK(records.broken.at("broken").hint() == "qvm image rm broken");
    CHECK(store.has("broken"));
    CHECK(!store.has("../name/one"));
    CHECK(!store.find("../name/one"));
}

TEST_CASE("a name that is no file is told, and can be removed") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    const auto names = directory.path / "image/name";
    REQUIRE(::mkfifo((names / "pipe").c_str(), 0600) == 0);
    REQUIRE(::mkfifo((store.drafts() / "pipe").c_str(), 0600) == 0);
    REQUIRE(::mkfifo(store.blob(std::string(64, '0')).c_str(), 0600) == 0);
    fs::create_directory(names / "directory");
    fs::create_symlink("nothing", names / "link");
    const auto records = store.records();
    CHECK(records.known.size() == 1);
    CHECK(records.broken.size() == 3);
    for (const auto& [name, failure] : records.broken) {
        CHECK(failure.what() == fmt::format("image '{}': its record is no regular file", name));
        CHECK(store.has(name));
        store.remove_name(name);
        CHECK(!store.has(name));
    }
    CHECK(store.space_of(std::string(64, '0')) == 0);
    CHECK(store.sweep() == 1);
    fs::create_directories(names / "full/more");
    CHECK_THROWS_WITH(store.remove_name("full"), Catch::EndsWith("Directory not empty"));
}

TEST_CASE("a store of somebody else's is not written to, and that is why") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    constexpr uid_t nobody = 65534;
    if (::chown((directory.path / "image").c_str(), nobody, nobody) != 0) return;  // not root
    CHECK_THROWS_WITH(store.lock(), fmt::format("directory '{}': belongs to somebody else",
                                                (directory.path / "image").string()));
}

TEST_CASE("an image that was damaged is made whole when it is added again") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    const auto file = store.blob(images::checksum("abc"));
    fs::permissions(file, fs::perms::owner_all);
    std::ofstream{file} << "xyz";
    CHECK(!store.is_whole(images::checksum("abc")));
    add(store, "one", "abc");
    CHECK(store.is_whole(images::checksum("abc")));
}

TEST_CASE("an image is found by a checksum, where it is still there") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    add(store, "one", "abc");
    const auto digest = images::checksum("abc");
    CHECK(store.find_checked("sha256:" + digest));
    auto record = record_of("abc");
    record.checksum = "sha512:12";
    CHECK(store.give_name("two", record));
    std::ofstream{directory.path / "image/name/broken"} << "{";
    CHECK(store.find_checked("sha512:12") == record);
    CHECK(!store.find_checked("sha512:13"));
    store.remove_blob(digest);
    CHECK(!store.find_checked("sha512:12"));
    CHECK(!store.give_name("three", record));
}

TEST_CASE("a draft goes with who makes it, or with the next sweep") {
    const Temporary directory;
    const ImageStore store{directory.path / "image"};
    fs::path path;
    {
        const ImageDraft draft{store.drafts()};
        path = draft.path();
        CHECK(store.sweep() == 0);
        CHECK(fs::exists(path));
    }
    CHECK(!fs::exists(path));
    std::ofstream{store.drafts() / "AbCdEf"} << "of a process that was killed";
    CHECK(store.sweep() == 1);
    CHECK(files_in(store.drafts()) == 0);
}

TEST_CASE("a download goes on where it was broken off") {
    const Temporary directory;
    const std::string url = "http://x/disk";
    const auto never = [] { FAIL("somebody has it"); };
    {
        Download download{directory.path, url, never};
        CHECK(download.partial() == images::Partial{});
        download.begin("\"first\"");
        download.append("abc");
        CHECK(download.partial() == images::Partial{3, "\"first\""});
    }
    {
        Download download{directory.path, url, never};
        CHECK(download.partial() == images::Partial{3, "\"first\""});
        // Who reads it seeks in it.
        CHECK(::lseek(download.fd(), 1, SEEK_SET) == 1);
        download.append("def");
        auto draft = download.finish();
        CHECK(text_of(draft.path()) == "abcdef");
        draft.move_to(directory.path / "done");
    }
    CHECK(text_of(directory.path / "done") == "abcdef");
    CHECK(files_in(directory.path) == 1);
}

TEST_CASE("nobody's password is kept with a download") {
    const Temporary directory;
    const std::string url = "http://me:secret@x/disk?token=secret";
    Download download{directory.path, url, [] {}};
    download.begin("\"first\"");
    const auto note = text_of(directory.path / (images::checksum(url) + ".json"));
    CHECK(note.find("http://x/disk") != note.npos);
    CHECK(note.find("secret") == note.npos);
}

TEST_CASE("a download of before the last boot begins anew") {
    const Temporary directory;
    const std::string url = "http://x/disk";
    {
        Download download{directory.path, url, [] {}};
        download.begin("\"first\"");
        download.append("abc");
    }
    const auto note = directory.path / (images::checksum(url) + ".json");
    auto text = text_of(note);
    const auto boot = text.find("\"boot\":\"") + 8;
    text[boot] = text[boot] == '0' ? '1' : '0';
    std::ofstream{note} << text;
    const Download download{directory.path, url, [] {}};
    CHECK(!can_go_on(download.partial()));
}

TEST_CASE("of a download that cannot go on nothing stays") {
    const Temporary directory;
    const auto never = [] {};
    { const Download download{directory.path, "http://x", never}; }
    CHECK(files_in(directory.path) == 0);
    {
        Download download{directory.path, "http://x", never};
        download.begin("");
        download.append("abc");
    }
    CHECK(files_in(directory.path) == 0);
    Download download{directory.path, "http://x", never};
    download.begin("");
    download.append("abc");
    download.discard();
    CHECK(files_in(directory.path) == 0);
}

TEST_CASE("downloads that nobody goes on with are removed") {
    const Temporary directory;
    const ImageStore store{directory.path};
    const auto make = [&](const char* url) {
        Download download{store.downloads(), url, [] {}};
        download.begin("\"x\"");
        download.append("abc");
    };
    make("http://x/old");
    make("http://x/busy");
    const Download busy{store.downloads(), "http://x/busy", [] {}};
    CHECK(store.remove_downloads(Clock::now() - std::chrono::hours{1}).empty());
    CHECK(files_in(store.downloads()) == 4);
    CHECK(store.remove_downloads(Clock::now()).size() == 1);
    CHECK(files_in(store.downloads()) == 2);
    // Killed between two calls.
    std::ofstream{store.downloads() / (std::string(64, '0') + ".json")} << "{}";
    CHECK(store.remove_downloads(Clock::now()).empty());
    CHECK(files_in(store.downloads()) == 2);
}

TEST_CASE("more than there is room for") {
    const Temporary directory;
    CHECK_NOTHROW(check_space(directory.path, 1, {}));
    CHECK_THROWS_AS(check_space(directory.path, std::uint64_t{1} << 62, {}), Failure);
}
