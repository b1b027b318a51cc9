#include "launcher/warm.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <set>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;

namespace {

const WarmFacts facts{.qvm = "1", .qemu = "7.2", .cpu = "max", .public_key = "ssh-ed25519 A"};

}  // namespace

TEST_CASE("what is of one run does not make another machine") {
    const Temporary directory;
    RunOptions options;
    options.vm.image = directory.path / "disk.raw";
    std::ofstream{*options.vm.image} << "disk";
    const auto key = warm_key(options, facts);
    CHECK(key.size() == 64);
    auto other = options;
    other.name = "web";
    other.detach = true;
    other.vm.publish = {parse_publish("8080:80")};
    other.vm.volumes = {parse_volume("/src:/src")};
    other.vm.group = "lab";
    other.timeout = std::chrono::seconds{5};
    CHECK(warm_key(other, facts) == key);
}

TEST_CASE("what the machine is made of does") {
    const Temporary directory;
    RunOptions options;
    options.vm.image = directory.path / "disk.raw";
    std::ofstream{*options.vm.image} << "disk";
    const auto user_data = directory.path / "user-data";
    std::ofstream{user_data} << "#cloud-config\n";
    const auto key = warm_key(options, facts);
    const auto with = [&](auto change) {
        auto other = options;
        change(other);
        return warm_key(other, facts);
    };
    CHECK(with([](auto& other) { other.vm.memory_mib = 2048; }) != key);
    CHECK(with([](auto& other) { other.vm.net = parse_net("isolated"); }) != key);
    CHECK(with([](auto& other) { other.wait_for = {parse_wait_for("ssh")}; }) != key);
    const auto seeded = with([&](auto& other) { other.vm.user_data = user_data; });
    CHECK(seeded != key);
    std::ofstream{user_data} << "#cloud-config\npackages: [make]\n";
    CHECK(with([&](auto& other) { other.vm.user_data = user_data; }) != seeded);
    auto newer = facts;
    newer.qemu = "7.3";
    CHECK(warm_key(options, newer) != key);
    newer = facts;
    newer.firmware = "OVMF_CODE.fd";
    CHECK(warm_key(options, newer) != key);
    newer = facts;
    newer.cpu = "host";
    CHECK(warm_key(options, newer) != key);
    std::ofstream{*options.vm.image} << "another";
    CHECK(warm_key(options, facts) != key);
    fs::remove(*options.vm.image);
    CHECK_THROWS_AS(warm_key(options, facts), Failure);
}

TEST_CASE("what runs that were killed left is removed, and nothing else") {
    const Temporary directory;
    const Directories directories{.run = {}, .data = {}, .cache = directory.path};
    const auto warm = directories.warm();
    const std::string key(64, 'a'), other(64, 'b');
    fs::create_directories(warm / ('.' + key + ".7"));
    std::ofstream{warm / ('.' + key + ".7") / "memory"} << "half";
    const auto turn = try_lock_file(warm / (other + ".lock"));
    for (const auto& name : {key + ".lock", std::string{"apt.lock"}}) std::ofstream{warm / name};
    CHECK(sweep_warm(directories) == 1);
    std::set<std::string> left;
    for (const auto& entry : fs::directory_iterator{warm}) left.insert(entry.path().filename());
    CHECK(left == std::set<std::string>{"apt.lock", other + ".lock"});
}

TEST_CASE("there may be nothing to remove") {
    const Temporary directory;
    CHECK(sweep_warm({.run = {}, .data = {}, .cache = directory.path}) == 0);
}

TEST_CASE("the machine that is saved waits for its agent, and ends by itself") {
    RunOptions options;
    options.wait_for = {parse_wait_for("ssh")};
    options.command.emplace();
    const auto boot = warm_boot(options, "warm-1");
    CHECK(boot.name == "warm-1");
    CHECK(boot.detach);
    CHECK(!boot.command);
    CHECK(boot.timeout);
    REQUIRE(boot.wait_for.size() == 2);
    CHECK(boot.wait_for.back().stage == WaitForOption::Stage::agent);
}
