#include <catch2/catch.hpp>

#include "netns/dns_relay.h"

using qvm::netns::parse_nameservers;

TEST_CASE("nameservers of a resolv.conf") {
    const auto servers = parse_nameservers(
        "# comment\nsearch example.org\nnameserver 127.0.0.53\n"
        "nameserver\t2001:db8::53\n nameserver 192.0.2.53 # trailing\nnameserver nonsense\n");
    REQUIRE(servers.size() == 3);
    CHECK(servers[0].to_string() == "127.0.0.53");
    CHECK(servers[1].to_string() == "2001:db8::53");
    CHECK(servers[2].to_string() == "192.0.2.53");
    REQUIRE(parse_nameservers("").size() == 1);
    CHECK(parse_nameservers("")[0].is_loopback());
}
