#include "images/catalogue.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>

#include "tests/unit/images/support.h"

using namespace qvm::images;
using namespace qvm::images::test;

TEST_CASE("what may name an image") {
    for (const auto* name : {"debian", "debian:12", "Alpine-3.22:x86_64", "a", "0:0"})
        CHECK(is_image_name(name));
    for (const auto* name : {"", ":", "a:", ":a", "a:b:c", "a/b", ".a", "-a", "a:.b", "a:-b", "a b",
                             "snapshot:ready", "sha256:c7", "\xc3\xa9"})
        CHECK(!is_image_name(name));
    CHECK(is_image_name(std::string(64, 'x')));
    CHECK(!is_image_name(std::string(65, 'x')));
}

TEST_CASE("a name that is made of a file's") {
    CHECK(image_name_of("debian-12-generic-amd64.qcow2") == "debian-12-generic-amd64");
    CHECK(image_name_of("FreeBSD-14.3.qcow2.xz") == "FreeBSD-14.3");
    CHECK(image_name_of("my disk.img") == "my-disk");
    CHECK(image_name_of("-.img") == "image");
    CHECK(image_name_of("") == "image");
    CHECK(is_image_name(image_name_of("..\xc3\xa9:" + std::string(100, 'x'))));
}

TEST_CASE("every image of our own can be named, and by no two names the same") {
    const auto& catalogue = built_in_catalogue();
    std::set<std::string> architectures;
    for (const auto& entry : catalogue) architectures.insert(entry.architecture);
    CHECK(architectures == std::set<std::string>{"aarch64", "x86_64"});
    for (const auto& entry : catalogue) {
        CAPTURE(entry.name, entry.architecture);
        CHECK(entry.url.starts_with("https://"));
        CHECK(entry.checksums.starts_with("https://"));
        auto names = entry.aliases;
        names.push_back(entry.name);
        for (const auto& name : names)
            CHECK(find_image(catalogue, name, entry.architecture) == entry);
    }
    for (const auto* name : {"debian", "ubuntu", "fedora", "almalinux", "rocky", "arch", "alpine",
                             "opensuse", "freebsd"})
        CHECK(find_image(catalogue, name, "x86_64"));
}

TEST_CASE("the last entry of a name is the one that counts") {
    const auto catalogue = parse_catalogue(R"({"images": [
        {"name": "one", "url": "http://a/x"},
        {"name": "one", "url": "http://b/x", "architecture": "aarch64"},
        {"name": "two", "aliases": ["one"], "url": "file:///x"}]})");
    CHECK(find_image(catalogue, "one", "x86_64")->name == "two");
    CHECK(find_image(catalogue, "one", "aarch64")->url == "http://b/x");
    CHECK(!find_image(catalogue, "three", "x86_64"));
}

TEST_CASE("a catalogue that is wrong says where") {
    const auto wrong = [](const std::string& text) {
        return error_of([&] { (void)parse_catalogue(text); });
    };
    CHECK(wrong("{").starts_with("is no JSON: "));
    CHECK(wrong("[]") == "has no array of images");
    CHECK(wrong(R"({"images": [1]})") == "'image 1': is not an object");
    CHECK(wrong(R"({"images": [{}]})") == "'image 1': '' is no name of an image");
    CHECK(wrong(R"({"images": [{"name": "a", "url": "http://x", "checksum": "http://x"}]})") ==
          "'a': 'checksum' is not known");
    CHECK(wrong(R"({"images": [{"name": "a"}]})") == "'a': there is no url");
    CHECK(wrong(R"({"images": [{"name": "a", "url": "ftp://x"}]})") == "'a': url is no URL");
    CHECK(wrong(R"({"images": [{"name": "a", "url": 1}]})") == "'a': url is not a string");
    CHECK(wrong(R"({"images": [{"name": "a", "aliases": ["/"], "url": "http://x"}]})") ==
          "'a': '/' is no name of an image");
    CHECK(wrong(R"({"images": [{"name": "a", "url": "http://x", "keyring": "/k"}]})") ==
          "'a': there is a keyring, and no list of checksums");
    CHECK(wrong(R"({"images": [{"name": "a", "url": "http://x", "checksums": "http://y",
                                "signature": "http://z"}]})") ==
          "'a': there is a signature, and no keyring");
}
