#include "images/contents.h"

#include <fcntl.h>

#include <catch2/catch.hpp>

#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

const ImageInfo qcow2{.format = "qcow2", .virtual_size = 1};
const ImageInfo raw{.format = "raw", .virtual_size = 1};

void check_bytes(const TemporaryDirectory& directory, const std::string& bytes,
                 const ImageInfo& info, bool has_kernel = false) {
    write_file(directory / "image", bytes);
    check_contents(File(directory / "image", O_RDONLY).fd(), info, has_kernel);
}

std::string boot_sector() {
    return std::string(510, 'x') + "\x55\xaa";
}

// A qcow2 image with some data in it, made with these options of `qemu-img create` or `convert`.
std::string make_qcow2(const TemporaryDirectory& directory, const std::string& arguments) {
    const auto path = (directory / "good.qcow2").string();
    const auto source = (directory / "source.raw").string();
    output_of("head -c 300000 /dev/urandom >" + source + "; truncate -s 3M " + source);
    output_of("qemu-img " + arguments + " -O qcow2 " + source + " " + path);
    return read_file(path);
}

}  // namespace

TEST_CASE("a raw disk has whole sectors and a boot signature") {
    const TemporaryDirectory directory;
    check_bytes(directory, boot_sector(), raw);
    check_bytes(directory, boot_sector() + std::string(512, '\0'), raw);
    check_bytes(directory, std::string(512, '\0'), raw, true);
    for (const auto& bytes : {std::string(), std::string("# README\n"), std::string(512, '\0'),
                              boot_sector() + "x", std::string(511, 'x')}) {
        CHECK_THAT(error_of([&] { check_bytes(directory, bytes, raw); }),
                   Catch::Contains("not a disk image"));
    }
}

TEST_CASE("what claims to be something else is no raw disk") {
    const TemporaryDirectory directory;
    for (const auto& magic : {std::string("QFI\xfb"), std::string("\x1f\x8b"),
                              std::string("\xfd"
                                          "7zXZ\0",
                                          6),
                              std::string("PK\x03\x04")}) {
        const auto bytes = magic + boot_sector().substr(magic.size());
        CHECK_THROWS_AS(check_bytes(directory, bytes, raw, true), Error);
    }
}

TEST_CASE("an archive of disks is none") {
    const TemporaryDirectory directory;
    for (const auto* format : {"ustar", "gnu"}) {
        const auto path = (directory / format).string();
        output_of("cd /etc && tar -b1 -H " + std::string(format) + " -cf " + path + " hostname");
        CHECK(error_of([&] { check_bytes(directory, read_file(path), raw, true); }) ==
              "it is a tar archive, as an OVA is (tar -xf it, and import the disk in it)");
    }
}

TEST_CASE("an image of a CD is no disk, unless it boots as one") {
    const TemporaryDirectory directory;
    auto bytes = std::string(32769, '\0') + "CD001" + std::string(2048, '\0');
    bytes.resize(34816);
    CHECK_THAT(error_of([&] { check_bytes(directory, bytes, raw); }), Catch::Contains("of a CD"));
    check_bytes(directory, bytes, raw, true);  // beside a kernel, or another disk
    bytes.replace(0, 512, boot_sector());
    check_bytes(directory, bytes, raw);
}

TEST_CASE("only regular files have contents") {
    const File directory("/tmp", O_RDONLY);
    CHECK(error_of([&] { check_contents(directory.fd(), raw, true); }) == "is not a regular file");
    CHECK(error_of([&] { check_header(directory.fd(), false); }) == "is not a regular file");
}

TEST_CASE("a truncated qcow2 image is found out") {
    const TemporaryDirectory directory;
    const std::string arguments = GENERATE(
        "convert", "convert -c", "convert -o cluster_size=512", "convert -o cluster_size=2M",
        "convert -o compat=0.10", "convert -o refcount_bits=1", "convert -o refcount_bits=2",
        "convert -o refcount_bits=64", "convert -o extended_l2=on", "convert -o preallocation=full",
        "convert -o preallocation=metadata", "convert -c -o compression_type=zstd");
    CAPTURE(arguments);
    const auto whole = make_qcow2(directory, arguments);
    check_bytes(directory, whole, qcow2);

    const auto cluster = std::size_t{1} << static_cast<unsigned char>(whole[23]);
    const auto last_cluster = (whole.size() - 1) / cluster * cluster;
    for (std::size_t size = 4; size <= last_cluster; size += 1 + last_cluster / 300) {
        CAPTURE(size);
        REQUIRE_THROWS_AS(check_bytes(directory, whole.substr(0, size), qcow2), Error);
    }
    CHECK_THROWS_AS(check_bytes(directory, whole.substr(0, last_cluster), qcow2), Error);
}

TEST_CASE("an empty qcow2 image is whole") {
    const TemporaryDirectory directory;
    const std::string size = GENERATE("512", "1M", "20G", "8T");
    const auto path = (directory / "empty.qcow2").string();
    output_of("qemu-img create -f qcow2 " + path + " " + size);
    const auto whole = read_file(path);
    check_bytes(directory, whole, qcow2);
    for (std::size_t keep = 0; keep < whole.size(); keep += 1 + whole.size() / 300) {
        CAPTURE(keep);
        REQUIRE_THROWS_AS(check_bytes(directory, whole.substr(0, keep), qcow2), Error);
    }
}

TEST_CASE("a qcow2 image with snapshots and freed clusters is whole") {
    const TemporaryDirectory directory;
    make_qcow2(directory, "convert");
    const auto path = (directory / "good.qcow2").string();
    output_of("qemu-img snapshot -c one " + path);
    output_of("qemu-io -c 'write -P 7 1M 1M' -c 'discard 0 1M' " + path);
    output_of("qemu-img snapshot -d one " + path);
    check_contents(File(path, O_RDONLY).fd(), qcow2, false);
}

TEST_CASE("a damaged qcow2 header is an error") {
    const TemporaryDirectory directory;
    const auto whole = make_qcow2(directory, "convert");
    // Cluster size, L1 size, places of L1 table and refcount table, its size, refcount width.
    for (const std::size_t offset : {20u, 36u, 40u, 48u, 56u, 96u}) {
        CAPTURE(offset);
        auto bytes = whole;
        bytes[offset] = '\x7f';
        CHECK_THROWS_AS(check_bytes(directory, bytes, qcow2), Error);
    }
}

TEST_CASE("a qcow2 header is looked at before qemu-img could read it") {
    const TemporaryDirectory directory;
    const auto whole = make_qcow2(directory, "convert");
    struct Change {
        std::size_t offset;
        std::string bytes;
        std::string reason;
    };
    const std::string ones(8, '\xff');
    const std::string zeros(8, '\0');
    const std::string far("\0\0\0\1\0\0\0\0", 8);
    for (const auto& change : std::vector<Change>{
             {4, std::string("\0\0\0\1", 4), "version"},
             {4, std::string("\0\0\0\4", 4), "version"},
             {8, ones + zeros.substr(4), "backing file name"},
             {8, std::string("\0\0\0\0\0\0\1\0\0\0\4\0", 12), "backing file name"},
             {8, std::string("\0\0\0\0\0\0\1\0\0\0\0\4", 12), "backing file"},
             {20, std::string("\0\0\0\x8", 4), "cluster size"},
             {20, std::string("\0\0\0\x16", 4), "cluster size"},
             {24, zeros, "empty"},
             {24, ones, "size"},
             {24, far, "L1 table"},
             {32, std::string("\0\0\0\1", 4), "encrypted"},
             {36, zeros.substr(4), "L1 table"},
             {36, ones.substr(4), "L1 table"},
             {40, ones, "L1 table"},
             {40, far, "truncated"},
             {48, ones, "refcount table"},
             {48, far, "truncated"},
             {56, zeros.substr(4), "refcount table"},
             {56, ones.substr(4), "refcount table"},
             {60, ones.substr(4), "snapshots"},
             {60, std::string("\0\0\0\1\0\0\0\0\0\0\0\1", 12), "snapshots"},
             {60, std::string("\0\0\0\1", 4) + far, "truncated"},
             {72, std::string("\0\0\0\0\0\0\0\x20", 8), "features"},
             {72, std::string("\0\0\0\0\0\0\0\4", 8), "data file"},
             {96, std::string("\0\0\0\7", 4), "refcount width"},
             {100, std::string("\0\0\0\x67", 4), "length of its header"},
             {100, std::string("\0\1\0\1", 4), "length of its header"},
         }) {
        CAPTURE(change.offset, change.reason);
        auto bytes = whole;
        bytes.replace(change.offset, change.bytes.size(), change.bytes);
        write_file(directory / "image", bytes);
        const File image(directory / "image", O_RDONLY);
        CHECK_THAT(error_of([&] { check_header(image.fd(), false); }),
                   Catch::Contains(change.reason));
    }
    write_file(directory / "image", whole);
    CHECK(check_header(File(directory / "image", O_RDONLY).fd(), false) == "qcow2");
}

TEST_CASE("a backing file is let through where it is trusted") {
    const TemporaryDirectory directory;
    const auto path = (directory / "image").string();
    output_of("qemu-img create -f qcow2 -F raw -u -b /etc/passwd " + path + " 1M");
    CHECK(check_header(File(path, O_RDONLY).fd(), true) == "qcow2");
    CHECK_THAT(error_of([&] { check_header(File(path, O_RDONLY).fd(), false); }),
               Catch::Contains("/etc/passwd"));
    output_of("qemu-img create -f qcow2 -F raw -u -b nbd://127.0.0.1/x " + path + " 1M");
    CHECK_THAT(error_of([&] { check_header(File(path, O_RDONLY).fd(), true); }),
               Catch::Contains("no file of this host"));
}

TEST_CASE("check_header refuses an external data file before qemu-img could open it") {
    const TemporaryDirectory directory;
    const auto path = (directory / "image").string();
    output_of("qemu-img create -f qcow2 -o data_file=" + (directory / "data").string() + " " +
              path + " 1M");
    const File image(path, O_RDONLY);
    CHECK_THAT(error_of([&] { check_header(image.fd(), true); }), Catch::Contains("data file"));
}
