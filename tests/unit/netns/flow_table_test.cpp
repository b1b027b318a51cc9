#include "netns/flow_table.h"

#include <catch2/catch.hpp>
#include <string>

using namespace qvm::netns;
using namespace std::chrono_literals;

namespace {

using Table = FlowTable<std::string, int>;

const Table::Time start{1h};

}  // namespace

TEST_CASE("a flow is found until it was idle for too long") {
    Table table{8, 60s};
    CHECK(table.find("a", start) == nullptr);
    table.insert("a", 1, start);
    REQUIRE(table.find("a", start + 30s) != nullptr);
    table.expire(start + 89s);
    CHECK(table.size() == 1);
    table.expire(start + 90s);
    CHECK(table.size() == 0);
    CHECK(table.find("a", start + 90s) == nullptr);
}

TEST_CASE("the next expiry is that of the longest idle flow") {
    Table table{8, 60s};
    CHECK(!table.next_expiry());
    table.insert("a", 1, start);
    table.insert("b", 2, start + 1s);
    CHECK(table.next_expiry() == start + 60s);
    table.find("a", start + 2s);
    CHECK(table.next_expiry() == start + 61s);
    table.expire(start + 61s);
    CHECK(table.find("b", start + 61s) == nullptr);
    CHECK(table.find("a", start + 61s) != nullptr);
}

TEST_CASE("in a full table the longest idle flow makes room") {
    Table table{2, 60s};
    table.insert("a", 1, start);
    table.insert("b", 2, start + 1s);
    table.find("a", start + 2s);
    CHECK(table.insert("c", 3, start + 3s) == 3);
    CHECK(table.size() == 2);
    CHECK(table.find("b", start + 4s) == nullptr);
    CHECK(*table.find("a", start + 4s) == 1);
    CHECK(*table.find("c", start + 4s) == 3);
}
