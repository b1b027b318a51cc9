#include "netns/host_network.h"

#include <catch2/catch.hpp>

using namespace qvm::netns;
namespace ip = boost::asio::ip;

TEST_CASE("networks overlap when one holds the other") {
    const auto overlaps = [](const char* a, const char* b) {
        const auto x = ip::make_network_v4(a), y = ip::make_network_v4(b);
        CHECK(overlap(x, y) == overlap(y, x));
        return overlap(x, y);
    };
    CHECK(overlaps("10.0.0.0/8", "10.213.0.0/31"));
    CHECK(overlaps("10.213.0.1/32", "10.213.0.0/31"));
    CHECK(!overlaps("10.213.0.2/31", "10.213.0.0/31"));
    CHECK(overlaps("192.168.26.77/24", "192.168.26.0/25"));
    CHECK(!overlaps("192.168.26.77/24", "192.168.27.0/24"));
    CHECK(overlaps("0.0.0.0/0", "1.2.3.4/32"));
}

TEST_CASE("a pool is walked from its start, past what is used and what others have claimed") {
    const auto pool = ip::make_network_v4("10.77.0.0/29");
    const auto first = claim_from(pool, 31, {ip::make_network_v4("10.77.0.1/32")});
    REQUIRE(first);
    CHECK(first->network().to_string() == "10.77.0.2/31");
    const auto second = claim_from(pool, 31, {ip::make_network_v4("10.77.0.1/32")});
    REQUIRE(second);
    CHECK(second->network().to_string() == "10.77.0.4/31");
    const auto last = claim_from(pool, 30, {}, true);
    REQUIRE(last);
    CHECK(last->network().to_string() == "10.77.0.4/30");
    CHECK(!claim_from(pool, 28, {}));
    CHECK(!claim_from(pool, 31, {ip::make_network_v4("10.0.0.0/8")}));
}
