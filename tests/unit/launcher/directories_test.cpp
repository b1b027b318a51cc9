#include "launcher/directories.h"

#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>
#include <thread>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;

namespace {

void write(const fs::path& path) {
    fs::create_directories(path.parent_path());
    std::ofstream{path} << "x";
}

void tell_nobody(const std::string&, const fs::path&) {}

}  // namespace

TEST_CASE("a dead supervisor's directory is swept, a living one's is not") {
    const Temporary base;
    const Directories directories{base.path / "run", base.path / "data", base.path / "cache"};
    const VmDirectory living{directories.run, "living"};
    write(directories.run / "dead/lock");
    write(directories.run / "dead/console.log");
    std::vector<std::string> told;
    const auto tell = [&](const std::string& name, const fs::path& directory) {
        CHECK(fs::exists(directory / "console.log"));
        told.push_back(name);
    };
    fs::create_directory(directories.run / "killed-before-its-lock");
    CHECK(sweep_vms(directories.run, tell) == std::vector<std::string>{"dead"});
    CHECK(!fs::exists(directories.run / "killed-before-its-lock"));
    CHECK(told == std::vector<std::string>{"dead"});
    CHECK(fs::exists(living.path() / "lock"));
    CHECK(!fs::exists(directories.run / "dead"));
    CHECK_THROWS_AS(VmDirectory(directories.run, "living"), Failure);
}

TEST_CASE("a directory goes with its VM") {
    const Temporary base;
    { const VmDirectory directory{base.path / "run", "web"}; }
    CHECK(!fs::exists(base.path / "run/web"));
    const VmDirectory again{base.path / "run", "web"};
}

TEST_CASE("a directory that was given away goes with its new owner") {
    const Temporary base;
    std::optional<VmDirectory> first{std::in_place, base.path / "run", "web"};
    std::optional<VmDirectory> second{std::move(*first)};
    first.reset();
    CHECK(supervisor_of(base.path / "run", "web") == ::getpid());
    second.reset();
    CHECK(!fs::exists(base.path / "run/web"));
}

TEST_CASE("many that take a name at once: one has it, the others are told so") {
    const Temporary base;
    std::atomic<int> had = 0;
    std::atomic<int> strange = 0;
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            for (int round = 0; round < 200; ++round) try {
                    const VmDirectory directory{base.path / "run", "web"};
                    ++had;
                } catch (const Failure& failure) {
                    if (std::string{failure.what()}.find("is running") == std::string::npos)
                        ++strange;
                }
        });
    threads.clear();
    CHECK(had > 0);
    CHECK(strange == 0);
}

TEST_CASE("who cannot look takes nobody for dead") {
    const Temporary base;
    const VmDirectory web{base.path / "run", "web"};
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    const rlimit none{0, before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
    std::string why;
    try {
        supervisor_of(base.path / "run", "web");
    } catch (const Failure& failure) {
        why = failure.what();
    }
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_THAT(why, Catch::EndsWith("Too many open files"));
}

TEST_CASE("nothing that no supervisor made is swept, wherever QVM_RUN_DIR points") {
    const Temporary base;
    const Directories directories{base.path, base.path / "data", base.path / "cache"};
    write(base.path / "precious/disk.qcow2");
    write(base.path / "locked/lock");
    write(base.path / "locked/disk.qcow2");
    write(base.path / "locked/console.log");
    sweep_vms(directories.run, tell_nobody);
    CHECK(fs::exists(base.path / "precious/disk.qcow2"));
    for (const char* file : {"disk.qcow2", "console.log", "lock"})
        CHECK(fs::exists(base.path / "locked" / file));
}

TEST_CASE("no link is followed") {
    const Temporary base;
    write(base.path / "home/web/lock");
    fs::create_directory(base.path / "run");
    fs::create_symlink(base.path / "home/web", base.path / "run/web");
    CHECK(sweep_vms(base.path / "run", tell_nobody).empty());
    CHECK(fs::exists(base.path / "home/web/lock"));
    CHECK_THROWS_AS(VmDirectory(base.path / "run", "web"), Failure);
}

TEST_CASE("a file in a directory's place is said to be there") {
    const Temporary base;
    write(base.path / "run");
    CHECK_THROWS_WITH(make_private_directory(base.path / "run"),
                      Catch::Contains("a file is in its place"));
}

TEST_CASE("who lives is what the locks say") {
    const Temporary base;
    CHECK(living_vms(base.path / "run").empty());
    const VmDirectory web{base.path / "run", "web"};
    const VmDirectory db{base.path / "run", "db"};
    write(base.path / "run/dead/lock");
    CHECK(living_vms(base.path / "run") == std::vector<std::string>{"db", "web"});
    CHECK(supervisor_of(base.path / "run", "web") == ::getpid());
    CHECK(!supervisor_of(base.path / "run", "dead"));
    CHECK(!supervisor_of(base.path / "run", "nobody"));
}

TEST_CASE("a lock that is a file is one process's, and survives its removal by others") {
    const Temporary base;
    auto first = try_lock_file(base.path / "lock");
    REQUIRE(first);
    CHECK(!try_lock_file(base.path / "lock"));
    fs::remove(base.path / "lock");
    CHECK(try_lock_file(base.path / "lock"));  // another file
    first.reset();
    CHECK(!try_lock_existing(base.path / "none"));
}

TEST_CASE("a directory's lock outlives nobody, and the directory may go meanwhile") {
    const Temporary base;
    auto guard = lock_directory(base.path / "d");
    std::jthread other([&] {
        const auto late = lock_directory(base.path / "d");
        CHECK(fs::exists(base.path / "d"));
    });
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    fs::remove(base.path / "d");
    guard.reset();
}

TEST_CASE("who waits for the lock of a directory that is removed meanwhile has none") {
    const Temporary base;
    const auto directory = base.path / "group";
    auto guard = lock_directory(directory);
    std::atomic<bool> has_lock = true;
    std::thread waiting{[&] { has_lock = static_cast<bool>(lock_soon(directory)); }};
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    fs::remove(directory);
    guard.reset();
    waiting.join();
    CHECK(!has_lock);
}

TEST_CASE("a file is written as a whole or not at all") {
    const Temporary base;
    const auto path = base.path / "state";
    write_file(path, "one");
    write_file(path, std::string(100'000, 'x'));
    CHECK(read_file(path)->size() == 100'000);
    CHECK(!read_file(base.path / "none"));
    CHECK_THROWS_WITH(write_file(base.path / "none/state", "x"),
                      Catch::Contains("No such file or directory"));
    // A disk that is full keeps what was there.
    const auto full = fs::path{"/dev/full"};
    if (fs::exists(full)) {
        fs::create_symlink(full, base.path / "state.new");
        write_file(path, "two");  // the link is not followed
        CHECK(read_file(path) == "two");
    }
}
