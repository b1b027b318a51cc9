#include "launcher/directories.h"

#include <sys/file.h>
#include <unistd.h>

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

}  // namespace

TEST_CASE("a dead supervisor's directory is swept, a living one's is not") {
    const Temporary base;
    const Directories directories{base.path / "run", base.path / "data", base.path / "cache"};
    const VmDirectory living{directories.run, "living"};
    write(directories.run / "dead/lock");
    write(directories.run / "dead/console.log");
    CHECK(sweep_vms(directories.run) == std::vector<std::string>{"dead"});
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

TEST_CASE("nothing that no supervisor made is swept, wherever QVM_RUN_DIR points") {
    const Temporary base;
    const Directories directories{base.path, base.path / "data", base.path / "cache"};
    write(base.path / "precious/disk.qcow2");
    write(base.path / "locked/lock");
    write(base.path / "locked/disk.qcow2");
    sweep_vms(directories.run);
    CHECK(fs::exists(base.path / "precious/disk.qcow2"));
    CHECK(fs::exists(base.path / "locked/disk.qcow2"));
}

TEST_CASE("no link is followed") {
    const Temporary base;
    write(base.path / "home/web/lock");
    fs::create_directory(base.path / "run");
    fs::create_symlink(base.path / "home/web", base.path / "run/web");
    CHECK(sweep_vms(base.path / "run").empty());
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
