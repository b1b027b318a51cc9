#include "launcher/confinement.h"

#include <catch2/catch.hpp>

using namespace qvm;
using Kind = RootEntry::Kind;

namespace {

const auto all = parse_id_map("         0          0 4294967295\n");

bool has(const std::vector<RootEntry>& entries, const RootEntry& entry) {
    return std::find(entries.begin(), entries.end(), entry) != entries.end();
}

}  // namespace

TEST_CASE("an id that is nobody's, another for each VM") {
    const auto one = throw_away_id(1, all, all);
    CHECK(one == 0x70000001);
    CHECK(throw_away_id(0xffffffff, all, all) == 0x7fffffff);
    CHECK(throw_away_id(2, all, all) != one);
}

TEST_CASE("in a user namespace an id of those that are mapped, and none of an account") {
    const auto ranges = parse_id_map("0 1000 1\n1 100000 65536\n");
    const auto id = throw_away_id(0, ranges, ranges).value();
    CHECK(id == 32769);
    CHECK(throw_away_id(32767, ranges, ranges) == 65536);
    CHECK(throw_away_id(32768, ranges, ranges) == id);

    const auto root_only = parse_id_map("0 1000 1\n");
    CHECK(!throw_away_id(1, root_only, root_only));
    CHECK(!throw_away_id(1, ranges, root_only));
    CHECK(!throw_away_id(1, all, {}));
}

TEST_CASE("a file's directories come before it, each once") {
    const auto entries = with_directories({{Kind::bind, "usr", "/usr"},
                                           {Kind::file, "boot/a/vmlinuz", "/boot/a/vmlinuz"},
                                           {Kind::file, "boot/a/initrd", "/boot/a/initrd"},
                                           {Kind::file, "boot/a/initrd", "/boot/a/initrd"}});
    CHECK(entries == std::vector<RootEntry>{{Kind::bind, "usr", "/usr"},
                                            {Kind::directory, "boot"},
                                            {Kind::directory, "boot/a"},
                                            {Kind::file, "boot/a/vmlinuz", "/boot/a/vmlinuz"},
                                            {Kind::file, "boot/a/initrd", "/boot/a/initrd"}});
}

TEST_CASE("what is there by a link is not put there again") {
    const auto entries = root_for("/usr/bin/true", {"/lib/os-release", "/bin/env"}, {});
    for (const auto& entry : entries) {
        CHECK(entry.path != "lib/os-release");
        CHECK(entry.path != "bin/env");
    }
}

TEST_CASE("the root directory has the system's software and what was named") {
    const auto entries =
        root_for("/usr/bin/true", {"/usr/bin/env", QVM_SOURCE_DIR "/README.md"}, {"/dev/null"});
    CHECK(has(entries, {Kind::bind, "usr", "/usr"}));
    CHECK(has(entries, {Kind::device, "dev/null", "/dev/null"}));
    CHECK(has(entries, {Kind::file, std::string{QVM_SOURCE_DIR "/README.md"}.substr(1),
                        QVM_SOURCE_DIR "/README.md"}));
    for (const auto& entry : entries) {
        CHECK(!entry.path.starts_with("usr/"));
        CHECK(entry.path != "etc/passwd");
        CHECK(entry.path != "home");
        CHECK(entry.path != "root");
    }
}
