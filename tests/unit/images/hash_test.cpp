#include "images/hash.h"

#include <catch2/catch.hpp>

#include "images/error.h"

using namespace qvm::images;

namespace {

// Of FIPS 180-4's examples.
constexpr const char* sha256_of_abc =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr const char* sha512_of_abc =
    "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
    "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

}  // namespace

TEST_CASE("hashes are those of the standard, in one piece or in many") {
    CHECK(checksum("abc") == sha256_of_abc);
    CHECK(checksum("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    Hash sha512{HashKind::sha512};
    for (const char* piece : {"a", "", "bc"}) sha512.update(piece, std::string_view{piece}.size());
    CHECK(sha512.finish() == Checksum{HashKind::sha512, sha512_of_abc});
    // It begins anew.
    sha512.update("abc", 3);
    CHECK(sha512.finish().hex == sha512_of_abc);
}

TEST_CASE("checksums as users write them") {
    CHECK(to_string(parse_checksum(std::string{"sha256:"} + sha256_of_abc)) ==
          std::string{"sha256:"} + sha256_of_abc);
    CHECK(parse_checksum("sha512:" + std::string(128, 'A')).hex == std::string(128, 'a'));
    CHECK_THROWS_WITH(parse_checksum("md5:00"), "is not sha256:HEX or sha512:HEX");
    CHECK_THROWS_WITH(parse_checksum("sha256:00"), "has not 64 hexadecimal digits");
    CHECK_THROWS_WITH(parse_checksum("sha512:" + std::string(128, 'g')),
                      "has not 128 hexadecimal digits");
}
