#include "launcher/catalogues.h"

#include <stdlib.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "tests/unit/launcher/temporary.h"

using namespace qvm;

TEST_CASE("a keyring is where its catalogue says, from where that is") {
    const Temporary directory;
    const auto file = directory.path / "images.json";
    ::setenv("QVM_CATALOGUE", file.c_str(), 1);
    const auto keyring_of = [&](const std::string& keyring) {
        std::ofstream{file} << R"({"images": [{"name": "mine", "url": "http://h/x",
                                "checksums": "http://h/y", "keyring": ")"
                            << keyring << R"("}]})";
        return find_in_catalogues("mine", Architecture::x86_64)->keyring;
    };
    CHECK(keyring_of("mine.gpg") == (directory.path / "mine.gpg").string());
    CHECK(keyring_of("keys/mine.gpg") == (directory.path / "keys/mine.gpg").string());
    CHECK(keyring_of("/etc/mine.gpg") == "/etc/mine.gpg");
    CHECK(keyring_of("").empty());
    ::unsetenv("QVM_CATALOGUE");
}
