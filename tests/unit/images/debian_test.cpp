#include <catch2/catch.hpp>
#include <vector>

#include "images/debian_steps.h"

using namespace qvm::images;

TEST_CASE("what mmdebstrap and apt write becomes a few lines") {
    std::vector<std::string> told;
    DebianProgress progress([&](std::string_view line) { told.emplace_back(line); });
    const std::string text =
        "I: automatically chosen format: directory\n"
        "I: running apt-get update...\n"
        "Get:1 http://example.org stable InRelease [100 kB]\n"
        "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.\n"
        "Get:1 http://example.org stable/main amd64 a all 1 [10 kB]\n"
        "Get:2 http://example.org stable/main amd64 b all 1 [10 kB]\n"
        "I: extracting archives...\n"
        "I: installing remaining packages inside the chroot...\n"
        "0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.\n"
        "Get:1 http://example.org stable/main amd64 c all 1 [10 kB]\n"
        "Unpacking c (1) ...\r\n"
        "Setting up c (1) ...\n"
        "Setting up a trigger ...\n";
    SECTION("at once") {
        progress.feed(text);
    }
    SECTION("byte by byte") {
        for (const char c : text) progress.feed({&c, 1});
    }
    CHECK(told == std::vector<std::string>{
                      "reading the package lists", "downloading the essential packages: 50 %",
                      "downloading the essential packages: 100 %",
                      "extracting the essential packages", "downloading packages: 100 %",
                      "installing packages: 50 %", "installing packages: 100 %"});
}

TEST_CASE("many packages are a line for each tenth") {
    std::vector<std::string> told;
    DebianProgress progress([&](std::string_view line) { told.emplace_back(line); });
    progress.feed("0 upgraded, 300 newly installed, 0 to remove and 0 not upgraded.\n");
    for (int i = 0; i < 300; ++i) progress.feed("Get:7 x\n");
    CHECK(told.size() == 11);
}

TEST_CASE("the first error says why mmdebstrap failed") {
    CHECK(debian_error("I: running apt-get update...\nW: a warning\n"
                       "E: Unable to locate package no-such-package\n"
                       "E: apt-get install failed\nE: mmdebstrap failed to run\n") ==
          "Unable to locate package no-such-package");
    CHECK(debian_error("I: a note\n").empty());
    CHECK(debian_error("").empty());
}

TEST_CASE("another suite is had from where the host's is") {
    const std::string targets =
        "http://security.example.org/ stable-security main\n"
        "http://example.org/debian/ stable non-free\n"
        "http://example.org/debian/ stable main\n"
        "http://other.example.org/ stable main\n";
    CHECK(source_of_suite(targets, "testing") == "deb http://example.org/debian/ testing main");
    CHECK_FALSE(source_of_suite("http://security.example.org/ stable-security main\n", "testing"));
    CHECK_FALSE(source_of_suite("", "testing"));
}

TEST_CASE("of several kernels the newest boots, with its own initramfs") {
    CHECK(newest_kernel({"vmlinuz-6.1.0-9-cloud-amd64", "initrd.img-6.1.0-9-cloud-amd64",
                         "vmlinuz-6.1.0-10-cloud-amd64", "initrd.img-6.1.0-10-cloud-amd64",
                         "initrd.img-6.2", "config-6.3"}) == "6.1.0-10-cloud-amd64");
    CHECK(newest_kernel({"vmlinuz-6.12~rc6-amd64", "initrd.img-6.12~rc6-amd64",
                         "vmlinuz-6.12-amd64", "initrd.img-6.12-amd64"}) == "6.12-amd64");
    CHECK(newest_kernel({"vmlinuz-6.9", "initrd.img-6.9", "vmlinuz-6.10"}) == "6.9");
    CHECK_FALSE(newest_kernel({"vmlinuz-6.10", "initrd.img-6.9"}));
}
