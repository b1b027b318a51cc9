#include "images/checksum_file.h"

#include <catch2/catch.hpp>

#include "tests/unit/images/support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

const std::string a(64, 'a'), b(64, 'b'), long_a(128, 'a'), long_b(128, 'b');

std::string found(const std::string& list) {
    const auto checksum = find_checksum(list, "disk.img");
    return checksum ? to_string(*checksum) : "";
}

}  // namespace

TEST_CASE("lists of checksums, as distributions have them") {
    CHECK(found(a + "  disk.img\n" + b + "  other.img\n") == "sha256:" + a);
    CHECK(found(b + " *other.img\r\n" + a + " *disk.img\r\n") == "sha256:" + a);
    CHECK(found(a + "  ./images/disk.img") == "sha256:" + a);
    CHECK(found("# disk.img: 1234 bytes\nSHA256 (disk.img) = " + a + "\n") == "sha256:" + a);
    CHECK(found(long_a + "\n") == "sha512:" + long_a);
    CHECK(
        found("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSHA512 (disk.img) = " + long_a +
              "\n-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----\n") ==
        "sha512:" + long_a);
    CHECK(found("SHA256 (disk.img) = " + a + "\nSHA512 (disk.img) = " + long_a + "\n") ==
          "sha512:" + long_a);
}

TEST_CASE("a file whose name has blanks") {
    const auto checksum = parse_checksum("sha256:" + a);
    for (const auto& line : {a + "  my own disk 1.img\r\n", a + " *images/my own disk 1.img",
                             "SHA256 (my own disk 1.img) = " + a}) {
        CHECK(find_checksum(line, "my own disk 1.img") == checksum);
        CHECK(!find_checksum(line, "my"));
    }
}

TEST_CASE("checksums of other algorithms") {
    const std::string others = "BLAKE2b (disk.img) = " + long_b + "\nSHA3-256 (disk.img) = " + b +
                               "\nRMD160 (disk.img) = " + b.substr(24) +
                               "\nSHA512/256 (disk.img) = " + b +
                               "\nMD5 (disk.img) = " + b.substr(32) + "\n";
    CHECK(found(others).empty());
    CHECK(found(others + "SHA256 (disk.img) = " + a + "\n") == "sha256:" + a);
    CHECK(found("SHA512 (disk.img) = " + long_a + "\n" + others) == "sha512:" + long_a);
    CHECK(found("SHA256 (disk.img) = " + long_a + "\n").empty());
    CHECK(only_checksum(others + "SHA256 (disk.img) = " + a + "\n") ==
          parse_checksum("sha256:" + a));
}

TEST_CASE("a list that says nothing of a file") {
    CHECK(found("").empty());
    CHECK(found(a + "  disk.img.xz\n").empty());
    CHECK(found(a + "  other/disk.img2\n").empty());
    CHECK(found("<html>disk.img</html>\n").empty());
    CHECK(found(a.substr(1) + "  disk.img\n").empty());
    CHECK(found("SHA256 (disk.img) : " + a + "\n").empty());
}

TEST_CASE("a list of one image alone") {
    CHECK(only_checksum(a + "  disk-1.2.img\n") == parse_checksum("sha256:" + a));
    CHECK(only_checksum("# x\n" + a + "  one\n" + a + "  the-same\n"));
    CHECK(!only_checksum(a + "  one\n" + b + "  other\n" + a + "  one\n"));
    CHECK(!only_checksum("x"));
}

TEST_CASE("a list that says two things") {
    CHECK(found(a + "  disk.img\n" + a + "  disk.img\n") == "sha256:" + a);
    CHECK(error_of([] { (void)found(a + "  disk.img\n" + b + "  disk.img\n"); }) ==
          "it has two checksums for 'disk.img'");
}
