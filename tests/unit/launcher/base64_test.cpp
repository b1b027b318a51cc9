#include "launcher/base64.h"

#include <catch2/catch.hpp>
#include <utility>
#include <vector>

#include "launcher/failure.h"

using namespace qvm;
using namespace std::string_literals;

TEST_CASE("base64, as RFC 4648 has it") {
    const std::vector<std::pair<std::string, std::string>> vectors{{"", ""},
                                                                   {"f", "Zg=="},
                                                                   {"fo", "Zm8="},
                                                                   {"foo", "Zm9v"},
                                                                   {"foob", "Zm9vYg=="},
                                                                   {"fooba", "Zm9vYmE="},
                                                                   {"foobar", "Zm9vYmFy"},
                                                                   {"\0\xff\xfe"s, "AP/+"}};
    for (const auto& [bytes, text] : vectors) {
        CHECK(to_base64(bytes) == text);
        CHECK(from_base64(text) == bytes);
    }
    for (const auto* text : {"Zg", "Zg=", "Z===", "Zg==Zg==", "Zm9v\n", "Zm 9v", "====", "é==="})
        CHECK_THROWS_AS(from_base64(text), Failure);
}
