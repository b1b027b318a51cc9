#include "images/overlay.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <chrono>

#include "images/contents.h"
#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

constexpr std::uint64_t MiB = 1 << 20;
constexpr std::uint64_t TiB = MiB << 20;

std::string write_one(const TemporaryDirectory& directory, std::uint64_t size) {
    const auto path = directory / "overlay.qcow2";
    const File file(path, O_RDWR | O_CREAT | O_EXCL);
    write_overlay(file.fd(), size);
    return path.string();
}

}  // namespace

TEST_CASE("QEMU finds nothing wrong with an overlay of any size") {
    const std::uint64_t size =
        GENERATE(512ul, 1024ul, MiB, 512 * MiB, 512 * MiB + 512, 10240 * MiB, TiB, 8 * TiB);
    CAPTURE(size);
    const TemporaryDirectory directory;
    const auto path = write_one(directory, size);
    CHECK_THAT(output_of("qemu-img check " + path), Catch::Contains("No errors were found"));

    const auto info = parse_probe(output_of("qemu-img info --output=json " + path));
    CHECK(info.format == "qcow2");
    CHECK(info.virtual_size == size);
    CHECK(info.actual_size <= 16384);
    check_image(info, false);
    check_contents(File(path, O_RDONLY).fd(), info, false);
}

TEST_CASE("an overlay reads its backing node and keeps writes to itself") {
    const TemporaryDirectory directory;
    const auto base = (directory / "base.raw").string();
    output_of("truncate -s 64M " + base);
    output_of("qemu-io -f raw -c 'write -P 65 0 64M' " + base);
    const auto overlay = write_one(directory, 64 * MiB);
    const auto node = "'json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"" +
                      overlay +
                      "\"},\"backing\":{\"driver\":\"raw\",\"read-only\":true,\"file\":{"
                      "\"driver\":\"file\",\"filename\":\"" +
                      base + "\"}}}'";
    output_of("qemu-io -c 'read -P 65 0 64M' -c 'write -P 66 1M 4096' " + node);
    output_of("qemu-io -c 'read -P 65 0 1M' -c 'read -P 66 1M 4096' " + node);
    output_of("qemu-io -f raw -c 'read -P 65 0 64M' " + base);
    CHECK_THAT(output_of("qemu-img check " + overlay), Catch::Contains("No errors were found"));
}

TEST_CASE("an overlay takes well under a millisecond") {
    const TemporaryDirectory directory;
    const File file(directory / "overlay", O_RDWR | O_CREAT | O_EXCL);
    const auto start = std::chrono::steady_clock::now();
    write_overlay(file.fd(), 10240 * MiB);
    // The bound is a loose one, for a busy machine.
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::milliseconds(20));
}

TEST_CASE("absurd sizes and files with something in them are refused") {
    const TemporaryDirectory directory;
    const File file(directory / "overlay", O_RDWR | O_CREAT | O_EXCL);
    for (const std::uint64_t size :
         {std::uint64_t{0}, std::uint64_t{511}, 4096 * TiB, ~std::uint64_t{511}}) {
        CHECK_THROWS_AS(write_overlay(file.fd(), size), Error);
    }
    write_overlay(file.fd(), 512);
    CHECK_THROWS_AS(write_overlay(file.fd(), 512), Error);
}
