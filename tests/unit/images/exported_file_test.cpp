#include "images/exported_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace fs = std::filesystem;

namespace {

std::size_t files_in(const fs::path& directory) {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator{directory}, fs::directory_iterator{}));
}

}  // namespace

TEST_CASE("a file that is exported is there as a whole, or not at all") {
    const TemporaryDirectory directory;
    const auto path = directory / "disk.qcow2";
    write_file(path, "old");
    std::string first;
    {
        ExportedFile file{path, 0666};
        CHECK(files_in(path.parent_path()) == 1);  // it has no name yet
        first = file.path().string();
        CHECK(file.path().parent_path() == path.parent_path());
        CHECK(file.path().filename().string().starts_with("."));
        CHECK(file.path().extension() == ".qcow2");
        CHECK(write(file.fd(), "new", 3) == 3);
    }
    CHECK(read_file(path) == "old");
    CHECK(files_in(path.parent_path()) == 1);

    ExportedFile file{path, 0666};
    CHECK(file.path() != first);  // which nobody could have put a link at
    write_file(file.path(), "new");
    file.keep();
    CHECK(read_file(path) == "new");
    CHECK(files_in(path.parent_path()) == 1);
}

TEST_CASE("a file that is exported has the mode and the owner of the one that was there") {
    const TemporaryDirectory directory;
    const auto path = directory / "disk";
    struct stat status {};
    {
        ExportedFile file{path, 0666};
        file.keep();
    }
    const auto mask = umask(0);
    umask(mask);
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == (0666 & ~mask));

    constexpr uid_t nobody = 65534;
    const bool may_give = chown(path.c_str(), nobody, nobody) == 0;
    REQUIRE(chmod(path.c_str(), 0640) == 0);
    ExportedFile file{path, 0666};
    file.keep();
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == 0640);
    CHECK(status.st_uid == (may_give ? nobody : geteuid()));
    ExportedFile secret{path, 0600};
    secret.keep();
    REQUIRE(stat(path.c_str(), &status) == 0);
    CHECK((status.st_mode & 07777) == 0600);
}

TEST_CASE("a file is exported behind a link, and over no directory") {
    const TemporaryDirectory directory;
    fs::create_directory(directory / "there");
    write_file(directory / "there/file", "old");
    fs::create_symlink("there/file", directory / "link");
    ExportedFile file{directory / "link", 0600};
    file.keep();
    CHECK(read_file(directory / "there/file").empty());
    CHECK(fs::is_symlink(directory / "link"));
    CHECK(error_of([&] {
              ExportedFile{directory / "there", 0600};
          }) == "it is there, and no regular file");
    CHECK_THROWS_AS((ExportedFile{directory / "none/file", 0600}), std::system_error);
}
