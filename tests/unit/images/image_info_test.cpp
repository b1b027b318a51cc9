#include "images/image_info.h"

#include <catch2/catch.hpp>

#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using qvm::images::test::error_of;

TEST_CASE("probe_command never forces its way past a lock") {
    CHECK(probe_command("raw", "/a b.raw") ==
          std::vector<std::string>{"qemu-img", "info", "--output=json", "-f", "raw", "/a b.raw"});
}

TEST_CASE("parse_probe reads what qemu-img 7.2 prints") {
    const auto info = parse_probe(R"({
        "backing-filename-format": "qcow2", "virtual-size": 10485760, "filename": "c.qcow2",
        "cluster-size": 65536, "format": "qcow2", "actual-size": 266240,
        "format-specific": {"type": "qcow2", "data": {"compat": "1.1", "data-file": "d.raw",
            "data-file-raw": true, "corrupt": true}},
        "backing-filename": "json:{}", "encrypted": true, "dirty-flag": true})");
    CHECK(info.format == "qcow2");
    CHECK(info.virtual_size == 10485760);
    CHECK(info.actual_size == 266240);
    CHECK(info.backing_file == "json:{}");
    CHECK(info.data_file == "d.raw");
    CHECK(info.encrypted);
    CHECK(info.dirty);
    CHECK(info.corrupt);
}

TEST_CASE("parse_probe leaves out what is not there") {
    const auto info = parse_probe(R"({"virtual-size": 512, "format": "raw"})");
    CHECK(info.actual_size == 0);
    CHECK(info.backing_file.empty());
    CHECK(info.data_file.empty());
    CHECK_FALSE(info.encrypted);
}

TEST_CASE("parse_probe refuses what is malformed") {
    const auto* text = GENERATE(
        "", "null", "[]", "{", "{}", R"({"format": "raw"})", R"({"virtual-size": 1})",
        R"({"format": 1, "virtual-size": 1})", R"({"format": "raw", "virtual-size": -1})",
        R"({"format": "raw", "virtual-size": 1.5})", R"({"format": "raw", "virtual-size": "1"})",
        R"({"format": "raw", "virtual-size": 9223372036854775808})",
        R"({"format": "raw", "virtual-size": 99999999999999999999})",
        R"({"format": "raw", "virtual-size": 1, "backing-filename": {}})",
        R"({"format": "raw", "virtual-size": 1} trailing)");
    CAPTURE(text);
    CHECK_THROWS_AS(parse_probe(text), Error);
    CHECK_THROWS_AS(parse_probe(std::string(100000, '[')), Error);
}

TEST_CASE("probe_failure gives the bare reason") {
    CHECK(probe_failure("qemu-img: Could not open '/nonexist': Could not open '/nonexist': No such "
                        "file or directory\n") == "No such file or directory");
    CHECK(probe_failure("qemu-img: Could not open 'x': Image is not in qcow2 format\n") ==
          "Image is not in qcow2 format");
    CHECK(probe_failure("qemu-img: Could not open 'a': Failed to get shared \"write\" lock\n"
                        "Is another process using the image [a]?\n") ==
          "is in use by another process");
    CHECK(probe_failure("qemu-img: Could not open '/tmp': 'file' driver requires '/tmp' to be a "
                        "regular file\n") == "is not a regular file");
    CHECK(probe_failure("something else") == "something else");
    CHECK(probe_failure("").size() > 0);
    CHECK(probe_failure("a\x1b[31mb") == "a?[31mb");
    CHECK(probe_failure(std::string(5000, 'x')).size() <= 300);
}

namespace {

ImageInfo good() {
    return {.format = "qcow2", .virtual_size = 1024};
}

}  // namespace

TEST_CASE("a guest is given qcow2 and raw") {
    check_format("qcow2");
    check_format("raw");
    CHECK_THAT(error_of([&] { check_format("vmdk"); }), Catch::Contains("vmdk"));
}

TEST_CASE("a backing file is a file, and one that is trusted") {
    check_backing_name("/images/base.qcow2", true);
    check_backing_name("base.qcow2", true);
    check_backing_name("./nbd:base", true);
    CHECK_THAT(error_of([&] { check_backing_name("base\n", false); }), Catch::Contains("base?"));
    for (const auto* name : {"json:{}", "nbd://127.0.0.1/x", "nbd:unix:/x", "fat:rw:/etc"}) {
        CAPTURE(name);
        CHECK_THROWS_AS(check_backing_name(name, true), Error);
        CHECK_THROWS_AS(check_backing_name(name, false), Error);
    }
}

TEST_CASE("check_image gives one reason against each thing") {
    auto info = good();
    check_image(info, false);
    SECTION("encryption") {
        info.encrypted = true;
        CHECK_THAT(error_of([&] { check_image(info, true); }), Catch::Contains("encrypted"));
    }
    SECTION("size") {
        info.virtual_size = 0;
        CHECK_THAT(error_of([&] { check_image(info, true); }), Catch::Contains("empty"));
    }
    SECTION("backing file") {
        info.backing_file = "/etc/shadow";
        CHECK_THAT(error_of([&] { check_image(info, false); }), Catch::Contains("/etc/shadow"));
        check_image(info, true);
    }
    SECTION("data file") {
        info.data_file = "/etc/shadow";
        CHECK_THAT(error_of([&] { check_image(info, false); }), Catch::Contains("/etc/shadow"));
        CHECK_THAT(error_of([&] { check_image(info, true); }), Catch::Contains("/etc/shadow"));
    }
    SECTION("json:") {
        info.backing_file = "json:{\"driver\":\"nbd\"}";
        CHECK_THAT(error_of([&] { check_image(info, true); }), Catch::Contains("json:"));
    }
}
