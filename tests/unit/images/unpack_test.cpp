#include "images/unpack.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>

#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

// 3 MB with a hole of 2 MB in it.
std::string contents() {
    std::string bytes;
    for (int i = 0; bytes.size() < 1'000'000; ++i) bytes += std::to_string(i) + "\n";
    return bytes.replace(100'000, 0, std::string(2'000'000, '\0'));
}

std::string unpacked(const TemporaryDirectory& directory, const std::string& packed) {
    write_file(directory / "packed", packed);
    const File from(directory / "packed", O_RDONLY);
    const File to(directory / "to", O_RDWR | O_CREAT | O_TRUNC);
    double done = 0;
    unpack(from.fd(), to.fd(), [&](double part) {
        CHECK(part >= done);
        done = part;
    });
    return read_file(directory / "to");
}

}  // namespace

TEST_CASE("what gzip, xz and zstd packed is unpacked, and its zeros are holes") {
    const TemporaryDirectory directory;
    const std::string tool = GENERATE("gzip", "xz -T1", "zstd -q", "gzip | gzip");
    CAPTURE(tool);
    const auto whole = contents();
    write_file(directory / "whole", whole);
    output_of("cat " + (directory / "whole").string() + " | " + tool + " >" +
              (directory / "source").string());
    const auto packed = read_file(directory / "source");
    {
        const File file(directory / "source", O_RDONLY);
        CHECK(is_packed(file.fd()));
        CHECK(first_unpacked(file.fd(), 600) == whole.substr(0, 600));
    }
    CHECK(unpacked(directory, packed) == whole);
    struct stat status {};
    REQUIRE(stat((directory / "to").c_str(), &status) == 0);
    CHECK(status.st_blocks * 512 < 1'100'000);

    for (const auto& damaged : {packed.substr(0, packed.size() / 2), packed.substr(0, 20)}) {
        CAPTURE(damaged.size());
        CHECK_THAT(error_of([&] { unpacked(directory, damaged); }),
                   Catch::Contains("cannot be unpacked"));
    }
}

TEST_CASE("nothing, packed, is nothing") {
    const TemporaryDirectory directory;
    output_of("gzip </dev/null >" + (directory / "source").string());
    CHECK(unpacked(directory, read_file(directory / "source")).empty());
    const File file(directory / "source", O_RDONLY);
    CHECK(first_unpacked(file.fd(), 512).empty());
}

TEST_CASE("what is not packed is not") {
    const TemporaryDirectory directory;
    for (const auto* bytes : {"", "x", "\x1f", "QFI\xfb"}) {
        write_file(directory / "file", bytes);
        CHECK_FALSE(is_packed(File(directory / "file", O_RDONLY).fd()));
    }
}

TEST_CASE("zeros without end are no disk") {
    const TemporaryDirectory directory;
    const auto path = (directory / "source").string();
    output_of("head -c 100M /dev/zero | zstd -q -19 >" + path + "; for i in 1 2 3 4 5; do cat " +
              path + " " + path + " >" + path + ".2; mv " + path + ".2 " + path + "; done");
    CHECK_THAT(error_of([&] { unpacked(directory, read_file(path)); }),
               Catch::Contains("more than any disk"));
    struct stat status {};
    REQUIRE(stat((directory / "to").c_str(), &status) == 0);
    CHECK(status.st_blocks == 0);
}
