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

void unpack_only(const TemporaryDirectory& directory, const std::string& packed) {
    write_file(directory / "packed", packed);
    const File from(directory / "packed", O_RDONLY);
    const File to(directory / "to", O_RDWR | O_CREAT | O_TRUNC);
    double done = 0;
    unpack(from.fd(), to.fd(), [&](double part) {
        CHECK(part >= done);
        done = part;
    });
}

std::string unpacked(const TemporaryDirectory& directory, const std::string& packed) {
    unpack_only(directory, packed);
    return read_file(directory / "to");
}

}  // namespace

TEST_CASE("what gzip, xz and zstd packed is unpacked, and its zeros are holes") {
    const TemporaryDirectory directory;
    const std::string tool = GENERATE("gzip", "xz -T1", "zstd -q", "xz -T1 | gzip");
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

    for (const auto size : {packed.size() - 1, packed.size() - 10, packed.size() / 2, 20ul, 10ul}) {
        CAPTURE(size);
        CHECK(error_of([&] { unpacked(directory, packed.substr(0, size)); }) ==
              "it cannot be unpacked: it is cut off, its end is missing");
    }
    auto damaged = packed;
    for (auto at = packed.size() / 2; at < packed.size() / 2 + 50; ++at) damaged[at] = '\xa5';
    const auto why = error_of([&] { unpacked(directory, damaged); });
    CHECK_THAT(why, Catch::Contains("cannot be unpacked") && !Catch::Contains("cut off"));
}

TEST_CASE("gzip's parts, its checksums, and what follows") {
    const TemporaryDirectory directory;
    const auto source = (directory / "source").string();
    output_of("(echo one | gzip; echo two | gzip) >" + source);
    const auto packed = read_file(source);
    CHECK(unpacked(directory, packed) == "one\ntwo\n");
    CHECK(unpacked(directory, packed + std::string(512, '\0')) == "one\ntwo\n");
    const auto part = packed.size() / 2;
    const auto why = [&](const std::string& bytes) {
        return error_of([&] { unpacked(directory, bytes); });
    };
    for (const auto end : {part, packed.size()}) {
        CAPTURE(end);
        auto damaged = packed;
        damaged[end - 8] ^= 1;
        CHECK(why(damaged) == "it cannot be unpacked: incorrect data check");
        damaged = packed;
        damaged[end - 1] ^= 1;
        CHECK(why(damaged) == "it cannot be unpacked: incorrect length check");
    }
    CHECK(why(packed + "more") == "it cannot be unpacked: incorrect header check");
    CHECK(why(packed + "\x1f") == "it cannot be unpacked: it is cut off, its end is missing");
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

TEST_CASE("a disk may be mostly zeros, and no bomb") {
    constexpr std::uint64_t gib = std::uint64_t{1} << 30;
    CHECK_FALSE(is_bomb(0, gib, gib));
    CHECK(is_bomb(0, gib + 1, 0));
    CHECK_FALSE(is_bomb(1 << 20, 33 * gib, 5 * gib));
    CHECK(is_bomb(1 << 20, 33 * gib, 5 * gib + 1));
    CHECK(is_bomb(1 << 20, 33 * gib + 1, 0));
}

TEST_CASE("a packed disk of zeros is taken, and one that is packed twice is not") {
    const TemporaryDirectory directory;
    const auto path = (directory / "source").string();
    constexpr std::uint64_t gib = std::uint64_t{1} << 30;
    output_of("truncate -s 1536M " + path + " && zstd -q --sparse " + path + " && gzip -k " + path +
              ".zst");
    const auto packed = read_file(path + ".zst");
    REQUIRE(gib / 2 > 4096 * packed.size());
    unpack_only(directory, packed);
    struct stat status {};
    REQUIRE(stat((directory / "to").c_str(), &status) == 0);
    CHECK(static_cast<std::uint64_t>(status.st_size) == gib + gib / 2);
    CHECK(status.st_blocks == 0);
    CHECK_THAT(error_of([&] { unpack_only(directory, read_file(path + ".zst.gz")); }),
               Catch::Contains("more than any disk"));
    REQUIRE(stat((directory / "to").c_str(), &status) == 0);
    CHECK(status.st_blocks == 0);
}
