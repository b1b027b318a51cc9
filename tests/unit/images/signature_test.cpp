#include "images/signature.h"

#include <catch2/catch.hpp>

using namespace qvm::images;

namespace {

const std::string good =
    "[GNUPG:] NEWSIG a@example.com\n"
    "[GNUPG:] KEY_CONSIDERED AAEAB2D719EDEE1318F220251A1F61CB634685E5 0\n"
    "[GNUPG:] GOODSIG 1A1F61CB634685E5 a@example.com\n"
    "[GNUPG:] VALIDSIG AAEAB2D719EDEE1318F220251A1F61CB634685E5 2026-11-27 1795776283 0 4\n";
// Both of which gpgv itself ends with 0 for.
const std::string expired =
    "[GNUPG:] KEYEXPIRED 1577923200\n"
    "[GNUPG:] EXPKEYSIG 92BD4A77472C96A9 b@example.com\n"
    "[GNUPG:] VALIDSIG 80047A4A97F40C0324E8224A92BD4A77472C96A9 2020-01-01 1577840400 0 4\n";
const std::string revoked =
    "[GNUPG:] REVKEYSIG 911B1A815B66D8BE c@example.com\n"
    "[GNUPG:] VALIDSIG 64884D602E8EF980E4F0026D911B1A815B66D8BE 2026-11-27 1795776283 0 4\n";
const std::string unknown =
    "[GNUPG:] ERRSIG FAB117DEEF544ED3 1 10 00 1795776283 9 0E3085749418987015E8EBE0FAB117DE\n"
    "[GNUPG:] NO_PUBKEY FAB117DEEF544ED3\n";

}  // namespace

TEST_CASE("what gpgv finds of a signature") {
    CHECK(problem_of_signature(good).empty());
    CHECK(problem_of_signature(good + good).empty());
    CHECK(problem_of_signature(expired) == "its key has expired");
    CHECK(problem_of_signature(revoked) == "its key was revoked");
    CHECK(problem_of_signature(unknown) == "its key is not in the keyring");
    CHECK(problem_of_signature("[GNUPG:] BADSIG 1A1F61CB634685E5 a@example.com\n") ==
          "it is not of this text");
    CHECK(problem_of_signature("[GNUPG:] EXPSIG 1A1F61CB634685E5 a\n") == "it has expired");
    CHECK(problem_of_signature("[GNUPG:] ERRSIG 1A1F61CB634685E5 99 10 00 1 4\n") ==
          "it cannot be checked");
    CHECK(problem_of_signature("[GNUPG:] NODATA 2\n") == "there is none");
}

TEST_CASE("all signatures have to be good, and one has to be there") {
    for (const auto& other : {expired, revoked, unknown}) {
        CHECK(!problem_of_signature(good + other).empty());
        CHECK(!problem_of_signature(other + good).empty());
    }
    CHECK(!problem_of_signature("").empty());
    CHECK(!problem_of_signature("[GNUPG:] GOODSIG 1A1F61CB634685E5 a\n").empty());
    CHECK(
        !problem_of_signature("gpgv: Good signature from \"a\"\nGOODSIG 1\nVALIDSIG 1\n").empty());
    CHECK(!problem_of_signature("[GNUPG:] PLAINTEXT 74 0 [GNUPG:] GOODSIG\n").empty());
}
