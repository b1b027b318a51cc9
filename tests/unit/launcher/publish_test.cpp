#include "launcher/publish.h"

#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;

TEST_CASE("--publish as docker has it") {
    const auto read = [](const char* text) { return to_string(parse_publish(text)); };
    CHECK(read("8080:80") == "127.0.0.1:8080:80/tcp");
    CHECK(read("8080:80/tcp") == "127.0.0.1:8080:80/tcp");
    CHECK(read("0:53/udp") == "127.0.0.1:0:53/udp");
    CHECK(read("0.0.0.0:8080:80") == "0.0.0.0:8080:80/tcp");
    CHECK(read("[::1]:8080:80") == "[::1]:8080:80/tcp");
    CHECK(read("::1:8080:80") == "[::1]:8080:80/tcp");
    for (const char* text : {"0.0.0.0:0:53/udp", "[::]:65535:65535/tcp"}) CHECK(read(text) == text);
    for (const char* text : {"", ":", "80", "80:", ":80", "a:80", "80:a", "80:80:80:80", "-1:80",
                             "+1:80", "80:80/", "80:80/sctp", "80 :80", "host:80:80"})
        CHECK_THROWS_AS(parse_publish(text), Failure);
    CHECK_THROWS_WITH(parse_publish("80:0"), "port 0 is not from 1 to 65535");
    CHECK_THROWS_WITH(parse_publish("65536:80"), "port 65536 is not from 0 to 65535");
}

TEST_CASE("--net is written as it is read") {
    for (const char* text : {"nat", "isolated,subnet=10.1.0.0/24,address=10.1.0.7,mtu=1400",
                             "nat,mac=52:54:00:00:00:01,pool=10.9.0.0/16,queues=4", "none", "user",
                             "flat,port-security=off", "bridge=br0", "bridge=br0,queues=2"})
        CHECK(to_string(parse_net(text)) == text);
}

TEST_CASE("the ports that QEMU bound are read from its own table") {
    std::vector<PublishOption> ports{parse_publish("0:22"), parse_publish("8080:80"),
                                     parse_publish("0:22/udp"), parse_publish("0:22")};
    take_forwarded_ports(
        "Hub -1 (net0):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[HOST_FORWARD]  13       127.0.0.1 40001       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]  14       127.0.0.1  8080       10.0.2.15    80     0     0\r\n"
        "  TCP[ESTABLISHED]   15       127.0.0.1 40009       10.0.2.15    22     0     0\r\n"
        "  UDP[HOST_FORWARD]  16       127.0.0.1 40002       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]  17       127.0.0.1 40003       10.0.2.15    22     0     0\r\n",
        ports);
    CHECK(ports[0].host_port == 40001);
    CHECK(ports[1].host_port == 8080);
    CHECK(ports[2].host_port == 40002);
    CHECK(ports[3].host_port == 40003);
    std::vector<PublishOption> none{parse_publish("0:22")};
    take_forwarded_ports("nonsense\n\n[HOST_FORWARD] x y z", none);
    CHECK(none[0].host_port == 0);
}
