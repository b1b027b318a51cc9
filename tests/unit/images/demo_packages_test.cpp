#include <algorithm>
#include <catch2/catch.hpp>

#include "images/demo_steps.h"
#include "images/error.h"
#include "support.h"

using namespace qvm::images;

namespace {

bool has(const std::vector<std::string>& words, const std::string& word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

/// An apt, on a host of amd64, that has all packages in version 1; it keeps what it was asked.
class FakeApt {
  public:
    CommandResult operator()(const Command& command) {
        const auto& argv = command.argv;
        asked.push_back(command);
        if (argv[0] == "dpkg") return {.output = "amd64\n"};
        if (has(argv, "--recurse"))
            return {.output = "qemu-guest-agent\n  Depends: libc6\nlibc6\n<libc-dev>\n"};
        if (argv[0] == "apt-cache")
            return {.output = argv.back() + "\n  Depends: linux-image-6.1\n"};
        if (!has(argv, "--print-uris")) return {};
        CommandResult result;
        const auto first = std::find(argv.begin(), argv.end(), "download") + 1;
        for (auto name = first; name != argv.end(); ++name)
            result.output += "'http://deb' " + *name + "_1_any.deb 1 SHA256:0\n";
        return result;
    }

    std::vector<Command> asked;
};

DemoPackages download(FakeApt& apt, const std::filesystem::path& directory,
                      DemoArchitecture architecture) {
    return download_packages(
        directory, demo_machine(architecture), [&](const Command& command) { return apt(command); },
        [](std::string_view) {});
}

}  // namespace

TEST_CASE("packages of the host's architecture are those of its own lists") {
    const test::TemporaryDirectory temporary;
    const auto directory = temporary / "packages";
    FakeApt apt;
    const auto found = download(apt, directory, DemoArchitecture::amd64);
    CHECK(found.kernel == directory / "linux-image-6.1_1_any.deb");
    CHECK(found.loader == directory / "systemd-boot-efi_1_any.deb");
    CHECK(found.agent.size() == 2);
    for (const auto& command : apt.asked) CHECK(!has(command.argv, "-o"));
    CHECK(apt.asked.at(1).argv.back() == "linux-image-cloud-amd64");
}

TEST_CASE("packages of another one are those of lists beside them") {
    const test::TemporaryDirectory temporary;
    const auto directory = temporary / "packages";
    FakeApt apt;
    (void)download(apt, directory, DemoArchitecture::arm64);
    CHECK(apt.asked.at(1).argv.back() == "update");
    CHECK(apt.asked.at(2).argv.back() == "linux-image-cloud-arm64");
    for (const auto& command : apt.asked) {
        if (command.argv[0] == "dpkg") continue;
        CHECK(has(command.argv, "APT::Architecture=arm64"));
        CHECK(has(command.argv, "Dir::State=" + (directory / "apt-arm64").string()));
        CHECK(has(command.argv, "Dir::State::status=/dev/null"));
    }
}

TEST_CASE("which files they are is asked where none of them lies, since apt leaves those out") {
    const test::TemporaryDirectory temporary;
    const auto directory = temporary / "packages";
    FakeApt apt;
    (void)download(apt, directory, DemoArchitecture::amd64);
    REQUIRE(apt.asked.size() >= 2);
    CHECK(apt.asked.at(apt.asked.size() - 2).directory == directory);
    CHECK(has(apt.asked.back().argv, "--print-uris"));
    CHECK(apt.asked.back().directory == "/");
}
