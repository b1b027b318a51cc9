#include "launcher/privilege.h"

#include <catch2/catch.hpp>

using namespace qvm;

TEST_CASE("ranges of ids as getsubids prints them") {
    CHECK(parse_id_ranges("").empty());
    CHECK(parse_id_ranges("0: alice 100000 65536\n1: alice 900000 10\n") ==
          std::vector<IdRange>{{100000, 65536}, {900000, 10}});
    CHECK(parse_id_ranges("Error fetching ranges\n").empty());
    CHECK(parse_id_ranges("0: alice 100000 0\n").empty());
}

TEST_CASE("our own id is root, and the ranges follow it") {
    CHECK(id_map(1000, {}) == "0 1000 1");
    CHECK(id_map(1000, {{100000, 65536}, {900000, 10}}) ==
          "0 1000 1 1 100000 65536 65537 900000 10");
}
