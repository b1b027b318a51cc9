#include "launcher/output.h"

#include <catch2/catch.hpp>

using namespace qvm;

TEST_CASE("nobody's words are a terminal's commands") {
    CHECK(printable("disk: 45 % of 331 MiB\n  and more") == "disk: 45 % of 331 MiB\n  and more");
    CHECK(printable("\x1b[2J\a\r\t\x7f.") == "?[2J????.");
    CHECK(printable(std::string_view{"a\0b", 3}) == "a?b");
    CHECK(printable("\xc2\x9b"
                    "2J") == "?2J");  // CSI in one character
    CHECK(printable("\xc3\xa9\xc2\xa0\xe2\x82\xac") == "\xc3\xa9\xc2\xa0\xe2\x82\xac");
    CHECK(printable("\xc2") == "\xc2");
}
