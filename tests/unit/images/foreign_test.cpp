#include <fcntl.h>

#include <catch2/catch.hpp>

#include "images/contents.h"
#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

// An image of 8 MiB with some data in it, in that format of qemu-img's.
std::string make_disk(const TemporaryDirectory& directory, const std::string& format) {
    const auto path = (directory / "disk").string();
    const auto source = (directory / "source.raw").string();
    output_of("head -c 300000 /dev/urandom >" + source + "; truncate -s 8M " + source);
    output_of("qemu-img convert -O " + format + " " + source + " " + path);
    return read_file(path);
}

std::string check_bytes(const TemporaryDirectory& directory, const std::string& bytes) {
    write_file(directory / "image", bytes);
    return check_header(File(directory / "image", O_RDONLY).fd(), false);
}

struct Change {
    std::size_t offset;
    std::string bytes;
    std::string reason;
};

void check_changes(const TemporaryDirectory& directory, const std::string& whole,
                   const std::vector<Change>& changes) {
    for (const auto& change : changes) {
        CAPTURE(change.offset);
        auto bytes = whole;
        bytes.replace(change.offset, change.bytes.size(), change.bytes);
        CHECK_THAT(error_of([&] { check_bytes(directory, bytes); }),
                   Catch::Contains(change.reason));
    }
    for (std::size_t size = 512; size < whole.size() && size < 400'000; size += 4999) {
        CAPTURE(size);
        try {
            check_bytes(directory, whole.substr(0, size));
        } catch (const Error&) {
            // Whatever is missing, it is the one thing that it may throw.
        }
    }
}

const std::string ones(8, '\xff');
const std::string zeros(8, '\0');

}  // namespace

TEST_CASE("the format is what the first bytes claim") {
    const TemporaryDirectory directory;
    for (const std::string format : {"qcow2", "vmdk", "vdi", "vhdx", "vpc"}) {
        CAPTURE(format);
        CHECK(check_bytes(directory, make_disk(directory, format)) == format);
    }
    for (const std::string format : {"qed", "parallels"})  // nobody has looked at what these name
        CHECK(error_of([&] { check_bytes(directory, make_disk(directory, format)); }) ==
              "its format is " + format + ", which is not supported");
    CHECK(check_bytes(directory, std::string(512, 'x')) == "raw");
    CHECK(check_bytes(directory, "") == "raw");
    CHECK(check_bytes(directory, "KD") == "raw");
    CHECK(check_bytes(directory, make_disk(directory, "vmdk -o subformat=streamOptimized")) ==
          "vmdk");
}

TEST_CASE("only a disk that needs no other is whole") {
    const TemporaryDirectory directory;
    const auto path = (directory / "disk").string();
    CHECK(is_whole_disk(make_disk(directory, "qcow2").substr(0, 512)));
    CHECK(is_whole_disk(std::string(512, 'x')));
    CHECK(is_whole_disk(""));
    CHECK_FALSE(is_whole_disk(make_disk(directory, "vdi").substr(0, 512)));
    output_of("qemu-img create -f qcow2 -F raw -b source.raw " + path);
    CHECK_FALSE(is_whole_disk(read_file(path).substr(0, 512)));
}

TEST_CASE("a VMDK that has its data elsewhere is refused") {
    const TemporaryDirectory directory;
    const std::string flat =
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        "createType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/passwd\" 0\n";
    CHECK_THAT(error_of([&] { check_bytes(directory, flat); }), Catch::Contains("other files"));
    CHECK_THAT(error_of([&] { check_bytes(directory, "COWD" + std::string(508, '\0')); }),
               Catch::Contains("other files"));
    const auto whole = make_disk(directory, "vmdk");
    const auto at = [&](const std::string& text) { return whole.find(text); };
    check_changes(directory, whole,
                  {{4, std::string("\4\0\0\0", 4), "version"},
                   {12, zeros, "size"},  // QEMU would then look into the descriptor
                   {12, ones, "size"},
                   {12, std::string("\0\0\0\0\0\1\0\0", 8), "grain directory"},
                   {20, ones, "grain size"},
                   {28, std::string("\2\0\0\0\0\0\0\0", 8), "descriptor"},
                   {44, ones.substr(4), "grain tables"},
                   {56, std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8), "grain directory"},
                   {at("monolithicSparse"), "monolithicFlat\"#", "monolithicSparse"},
                   {at("ddb.geometry.cylinders"), "parentFileNameHint=\"/x\"", "parent"}});
}

TEST_CASE("a VMDK's last header counts where the first one says so") {
    const TemporaryDirectory directory;
    auto whole = make_disk(directory, "vmdk -o subformat=streamOptimized");
    whole.resize((whole.size() + 511) / 512 * 512);
    auto header = whole.substr(0, 512);
    whole.replace(56, 8, ones);
    CHECK_THAT(error_of([&] { check_bytes(directory, whole); }), Catch::Contains("end is missing"));
    const std::string sector(512, '\0');
    CHECK(check_bytes(directory, whole + sector + header + sector) == "vmdk");
    header.replace(12, 8, ones);
    CHECK_THAT(error_of([&] { check_bytes(directory, whole + sector + header + sector); }),
               Catch::Contains("size"));
}

TEST_CASE("a VDI that differs from another, or cannot be, is refused") {
    const TemporaryDirectory directory;
    check_changes(directory, make_disk(directory, "vdi"),
                  {{0x44, "\2", "version"},
                   {0x4c, "\4", "parent"},
                   {0x4c, "\7", "type"},
                   {0x154, ones.substr(4), "block map"},
                   {0x168, "\1", "sector size"},
                   {0x170, ones, "size"},
                   {0x170, zeros, "size"},
                   {0x178, "\1", "block size"},
                   {0x180, ones.substr(4), "block map"},
                   {0x1a8, "\1", "parent"},
                   {0x1b8, "\1", "parent"}});
}

TEST_CASE("a VHDX that differs from another, or cannot be, is refused") {
    const TemporaryDirectory directory;
    const auto whole = make_disk(directory, "vhdx");
    constexpr std::size_t regions = 192 * 1024;
    const auto items = whole.find("metadata", regions);
    const auto parameters = items + 64 * 1024;
    check_changes(directory, whole,
                  {{regions, "x", "region table"},
                   {regions + 8, ones.substr(4), "region table"},
                   {regions + 16, "x", "region table"},
                   {regions + 32, ones, "block table"},
                   {regions + 64, ones, "metadata"},
                   {items, "x", "metadata"},
                   {items + 10, ones.substr(6), "metadata"},
                   {items + 32, "x", "metadata"},
                   {items + 48, ones.substr(4), "metadata"},
                   {parameters, "\1", "block size"},
                   {parameters + 4, "\2", "parent"},
                   {parameters + 8, ones, "size"},
                   {parameters + 8, std::string("\0\0\0\0\0\20\0\0", 8), "block table"}});
}

TEST_CASE("a VHD that differs from another, or cannot be, is refused") {
    const TemporaryDirectory directory;
    check_changes(directory, make_disk(directory, "vpc"),
                  {{16, ones, "end is missing"},
                   {48, ones, "size"},
                   {60, std::string("\0\0\0\4", 4), "parent"},
                   {60, std::string("\0\0\0\2", 4), "type"},
                   {512, "x", "header"},
                   {512 + 16, ones, "block table"},
                   {512 + 28, zeros.substr(4), "size"},
                   {512 + 32, "\3", "block size"}});
}
