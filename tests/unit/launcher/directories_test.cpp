#include "launcher/directories.h"

#include <stdlib.h>
#include <sys/file.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "launcher/failure.h"

using namespace qvm;
namespace fs = std::filesystem;

namespace {

struct Temporary {
    Temporary() {
        char name[] = "/tmp/qvm-test-XXXXXX";
        path = ::mkdtemp(name);
    }
    ~Temporary() { fs::remove_all(path); }
    fs::path path;
};

void write(const fs::path& path) {
    fs::create_directories(path.parent_path());
    std::ofstream{path} << "x";
}

}  // namespace

TEST_CASE("a dead supervisor's directory is swept, a living one's is not") {
    const Temporary base;
    const Directories directories{base.path / "run", base.path / "cache"};
    const VmDirectory living{directories.run, "living"};
    write(directories.run / "vm/dead/lock");
    write(directories.run / "vm/dead/console.log");
    sweep(directories);
    CHECK(fs::exists(living.path() / "lock"));
    CHECK(!fs::exists(directories.run / "vm/dead"));
    CHECK_THROWS_AS(VmDirectory(directories.run, "living"), Failure);
}

TEST_CASE("a directory goes with its VM") {
    const Temporary base;
    { const VmDirectory directory{base.path / "run", "web"}; }
    CHECK(!fs::exists(base.path / "run/vm/web"));
    const VmDirectory again{base.path / "run", "web"};
}

TEST_CASE("nothing that no supervisor made is swept, wherever QVM_RUN_DIR points") {
    const Temporary base;
    const Directories directories{base.path, base.path / "cache"};
    write(base.path / "vm/precious/disk.qcow2");
    write(base.path / "vm/locked/lock");
    write(base.path / "vm/locked/disk.qcow2");
    sweep(directories);
    CHECK(fs::exists(base.path / "vm/precious/disk.qcow2"));
    CHECK(fs::exists(base.path / "vm/locked/disk.qcow2"));
}

TEST_CASE("no link is followed") {
    const Temporary base;
    write(base.path / "home/web/lock");
    fs::create_directory(base.path / "run");
    fs::create_symlink(base.path / "home", base.path / "run/vm");
    sweep({base.path / "run", base.path / "cache"});
    CHECK(fs::exists(base.path / "home/web/lock"));
    CHECK_THROWS_AS(VmDirectory(base.path / "run", "web"), Failure);
}

TEST_CASE("a file in a directory's place is said to be there") {
    const Temporary base;
    write(base.path / "run");
    CHECK_THROWS_WITH(make_private_directory(base.path / "run"),
                      Catch::Contains("a file is in its place"));
}
