#include "images/url.h"

#include <catch2/catch.hpp>

using namespace qvm::images;

TEST_CASE("what an image is pulled from") {
    for (const auto* url : {"http://h/x", "https://h/x", "file:///x", "HTTP://h/x", "Https://h/x",
                            "FILE:///x", "https://u:p@h:1/x?y#z"})
        CHECK(is_url(url));
    for (const auto* text :
         {"", "x", "http:", "http:/x", "file://host/x", "ftp://h/x", "https", "xhttp://h/x",
          "http://h/a b", "http://h/\x1b[2J", "http://h/\x7f", "http://h/\n"})
        CHECK(!is_url(text));
    CHECK(has_scheme("HTTPS://h", "https"));
    CHECK(!has_scheme("http://h", "https"));
    CHECK(!has_scheme("https://h", "http"));
    CHECK(!has_scheme("https", "https"));
}

TEST_CASE("nobody is shown a password") {
    CHECK(without_secrets("https://host/disk.qcow2") == "https://host/disk.qcow2");
    CHECK(without_secrets("https://me:secret@host:8080/disk") == "https://host:8080/disk");
    CHECK(without_secrets("https://me@secret@host/a@b") == "https://host/a@b");
    CHECK(without_secrets("https://me:secret@host") == "https://host");
    CHECK(without_secrets("https://host/disk?token=secret&x=/@") == "https://host/disk?...");
    CHECK(without_secrets("https://host?token=secret") == "https://host?...");
    CHECK(without_secrets("https://host/disk#secret") == "https://host/disk#...");
    CHECK(without_secrets("file:///a@b/disk") == "file:///a@b/disk");
    CHECK(without_secrets("disk@1") == "disk@1");
}

TEST_CASE("a URL's file") {
    CHECK(file_name_of("https://host/a/disk.qcow2?x=/y#z") == "disk.qcow2");
    CHECK(file_name_of("https://host/a/").empty());
    CHECK(file_name_of("https://host/a%20b/my%20disk%2b1.raw") == "my disk+1.raw");
    for (const std::string odd : {"%", "%2", "%zz", "%2x", "%2f", "%00", "%0A", "%7f", "%+1"})
        CHECK(file_name_of("https://host/" + odd) == odd);
}
