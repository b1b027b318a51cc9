#include "launcher/snapshot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <fstream>
#include <functional>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

Manifest everything() {
    Manifest manifest;
    manifest.id = "0123abcd";
    manifest.created = "2026-01-31T12:00:00Z";
    manifest.vm.image = "/images/disk.qcow2";
    manifest.vm.net = parse_net("nat,subnet=192.168.26.0/24,address=192.168.26.10,mtu=1500");
    manifest.machine = {.qemu = "7.2.22",
                        .machine = "pc-q35-7.2",
                        .cpu = {{{"cpuid", "1.0.ECX"}, {"features", 129}}}};
    manifest.cpu = "max";
    manifest.disk_size = 1 << 30;
    manifest.disks = {"disk-0", "disk-1"};
    manifest.image = {{"/images/disk.qcow2", "qcow2", 1000, 5}};
    manifest.others = {{"/images/data.raw", "raw", 512, 6}};
    manifest.firmware = Firmware{.code = "/firmware/CODE.fd",
                                 .code_format = "raw",
                                 .variables = "/firmware/VARS.fd",
                                 .variables_format = "qcow2"};
    manifest.files = {{"memory", 1 << 30, "abc"},
                      {"state", 4, "def"},
                      {"disk-0", 5, "ghi"},
                      {"disk-1", 6, "jkl"}};
    return manifest;
}

std::string failure_of(const std::function<void()>& work) {
    try {
        work();
    } catch (const Failure& failure) {
        return failure.what();
    }
    return {};
}

void write(const fs::path& file, const std::string& text) {
    std::ofstream{file} << text;
}

std::string text_of(const UniqueFd& fd) {
    std::string text(100, '\0');
    text.resize(static_cast<std::size_t>(::read(fd.get(), text.data(), text.size())));
    return text;
}

/// A snapshot of that name, of one file.
void make(const fs::path& store, const std::string& name, const std::string& state = "abcd") {
    SnapshotDraft draft{store, name};
    write(draft.path() / "state", state);
    draft.finish(Manifest{}, true);
    draft.keep();
}

}  // namespace

TEST_CASE("a manifest is read as it was written") {
    const auto object = to_json(everything());
    CHECK(to_json(parse_manifest(object)) == object);
}

TEST_CASE("a manifest that is wrong is refused, whoever wrote it") {
    auto object = to_json(everything());
    object["version"] = 9;
    CHECK(failure_of([&] { (void)parse_manifest(object); }) == "has version 9; this qvm knows 1");
    object = to_json(everything());
    object["disks"] = json::array{"../../etc/passwd"};
    CHECK(failure_of([&] { (void)parse_manifest(object); }) ==
          "'../../etc/passwd' is no file of a snapshot");
    object = to_json(everything());
    object["files"].as_array()[0].as_object()["name"] = "lock";
    CHECK(failure_of([&] { (void)parse_manifest(object); }) == "'lock' is no file of a snapshot");
    object["machine"] = "q35";
    CHECK(failure_of([&] { (void)parse_manifest(object); }) == "'machine' is not an object");
}

TEST_CASE("a manifest names all that a machine begins with") {
    auto manifest = everything();
    CHECK(failure_of([&] { check_complete(manifest); }).empty());
    manifest.files.pop_back();
    CHECK(failure_of([&] { check_complete(manifest); }) == "names no 'disk-1' among its files");
    manifest.disks.clear();
    CHECK(failure_of([&] { check_complete(manifest); }).empty());
    manifest.files.clear();
    CHECK(failure_of([&] { check_complete(manifest); }) == "names no 'state' among its files");
}

TEST_CASE("a snapshot may have so many disks, and no more") {
    for (std::size_t i = 0; i < snapshot_files::most_disks; ++i)
        CHECK(snapshot_files::check_name(snapshot_files::disk(i)) == snapshot_files::disk(i));
    CHECK(failure_of([] {
              (void)snapshot_files::check_name(snapshot_files::disk(snapshot_files::most_disks));
          }) == "'disk-16' is no file of a snapshot");
}

TEST_CASE("a clone's network is the guest's, and the host's side may be another") {
    const auto saved = parse_net("nat,subnet=192.168.26.0/24,address=192.168.26.10,mtu=1400");
    const auto clone = [&](const char* wanted) {
        return to_string(clone_net(saved, parse_net(wanted)));
    };
    CHECK(to_string(clone_net(saved, std::nullopt)) == to_string(saved));
    CHECK(clone("isolated") == "isolated,subnet=192.168.26.0/24,address=192.168.26.10,mtu=1400");
    CHECK(clone("nat,address=192.168.26.10,pool=10.9.0.0/16").ends_with("pool=10.9.0.0/16"));
    CHECK(failure_of([&] { clone("nat,address=192.168.26.11"); }) ==
          "--net address=192.168.26.11: the snapshot's guest has 192.168.26.10");
    CHECK(failure_of([&] { clone("user"); }) == "--net user: the snapshot's guest has nat");
    CHECK(failure_of([&] { clone("nat,queues=2"); }) ==
          "--net queues=2: the snapshot's guest has 1");
}

TEST_CASE("what a clone may have of its own, and what is the machine's") {
    VmOptions wanted;
    wanted.snapshot = "ready";
    wanted.publish = {parse_publish("8080:80")};
    wanted.group = "lab";
    wanted.memory_mib = 7;
    const auto vm = clone_options(everything(), wanted);
    CHECK(vm.image == "/images/disk.qcow2");
    CHECK(vm.memory_mib == 1024);
    CHECK(vm.group == "lab");
    CHECK(vm.publish.size() == 1);
    CHECK(vm.accel == Accel::tcg);
    wanted.volumes.assign(9, parse_volume("/src:/src"));
    CHECK(failure_of([&] { (void)clone_options(everything(), wanted); }) ==
          "--volume: these are 9, and a clone has 8 at most");
}

TEST_CASE("what is of one life is not saved") {
    VmOptions vm;
    vm.group = "lab";
    vm.publish = {parse_publish("8080:80")};
    vm.user_data = "/tmp/user.yaml";
    vm.snapshot = "older";
    vm.memory_mib = 512;
    const auto saved = saved_options(vm, parse_net("user"));
    CHECK(!saved.group);
    CHECK(saved.publish.empty());
    CHECK(!saved.user_data);
    CHECK(!saved.snapshot);
    CHECK(saved.memory_mib == 512);
    CHECK(saved.net->mode == NetOption::Mode::user);
}

TEST_CASE("why a VM cannot be saved") {
    VmOptions vm;
    CHECK(why_not_saved(vm, false).empty());
    CHECK(why_not_saved(vm, true) == "--persist: the image itself goes on changing");
    vm.drives = {parse_drive("/data.raw:ro")};
    CHECK(why_not_saved(vm, false).empty());
    vm.drives = {parse_drive("/data.raw")};
    CHECK(why_not_saved(vm, false) == "--drive '/data.raw': clones would all write to it");
    vm.volumes = {parse_volume("/src:/src")};
    CHECK(why_not_saved(vm, false).starts_with("--volume '/src': "));
}

TEST_CASE("a draft is there as a whole, or not at all") {
    const Temporary directory;
    const auto store = directory.path / "snapshot";
    {
        const SnapshotDraft draft{store, "half"};
        write(draft.path() / "memory", "abc");
        CHECK(SnapshotStore{store}.names().empty());
    }
    CHECK(fs::is_empty(store));
    make(store, "ready");
    CHECK(SnapshotStore{store}.names() == std::vector<std::string>{"ready"});
    const auto snapshot = SnapshotStore{store}.open("ready");
    REQUIRE(snapshot.manifest().files.size() == 1);
    CHECK(snapshot.manifest().files.front().size == 4);
    CHECK(snapshot.manifest().files.front().checksum.size() == 64);
    CHECK(failure_of([&] {
              SnapshotDraft{store, "ready"};
          }) == "snapshot 'ready': there is one of that name");
}

TEST_CASE("what a killed process left is swept, and what is worked on is not") {
    const Temporary directory;
    const auto store = directory.path / "snapshot";
    fs::create_directories(store / ".new.1");
    write(store / ".new.1" / "state", "of one that was killed, and who writes to it yet");
    const SnapshotDraft draft{store, "new"};
    CHECK(!fs::exists(draft.path() / "state"));
    const SnapshotDraft of_other{store, "new.new"};
    CHECK(failure_of([&] {
              SnapshotDraft{store, "new"};
          }) == "snapshot 'new': another process makes it");
    fs::create_directory(store / ".old.1");
    write(store / ".old.1" / "memory", "abc");
    write(store / ".old.1" / "lock", "");
    CHECK(SnapshotStore{store}.sweep() == 2);
    CHECK(!fs::exists(store / ".old.1"));
    CHECK(fs::exists(draft.path()));
}

TEST_CASE("one that is used stays, unless it is forced; then it goes with its users") {
    const Temporary directory;
    const SnapshotStore store{directory.path / "snapshot"};
    make(store.directory(), "ready");
    {
        const auto snapshot = store.open("ready");
        const auto other = store.open("ready");
        CHECK(!store.remove("ready", false));
        snapshot.link("state", directory.path / "linked");
        CHECK(fs::hard_link_count(directory.path / "linked") == 2);
        CHECK(store.remove("ready", true));
        CHECK(store.names().empty());
        make(store.directory(), "ready", "efgh");
        CHECK(text_of(snapshot.open("state")) == "abcd");
        CHECK(text_of(snapshot.open_state()) == "abcd");
        snapshot.link("state", directory.path / "again");
        CHECK(read_file(directory.path / "again") == "abcd");
        CHECK(failure_of([&] {
                  snapshot.link("state", directory.path / "again");
              }).ends_with("again': File exists"));
        CHECK(store.remove("ready", true));
    }
    CHECK(fs::is_empty(store.directory()));
    CHECK(failure_of([&] { (void)store.remove("ready", false); }) ==
          "snapshot 'ready': there is none");
}

TEST_CASE("a shared draft goes with the last who uses it") {
    const Temporary directory;
    const auto store = directory.path / "snapshot";
    std::optional<SnapshotDraft> draft{std::in_place, store};
    const auto path = draft->path();
    write(path / "state", "abcd");
    draft->finish(Manifest{}, false);
    draft->share();
    std::optional<Snapshot> one{std::in_place, path, "fork"};
    std::optional<Snapshot> other{std::in_place, path, "fork"};
    draft.reset();
    CHECK(SnapshotStore{store}.sweep() == 0);
    one.reset();
    CHECK(fs::exists(path));
    other.reset();
    CHECK(!fs::exists(path));
}

TEST_CASE("whether a file is what it was") {
    const KnownFile was{.path = "/image", .size = 3, .modified = 5};
    auto now = was;
    now.path = "/elsewhere";
    CHECK(is_unchanged(was, now));
    now.modified = 6;
    CHECK(!is_unchanged(was, now));
    now = was;
    now.size = 4;  // and its time was put back
    CHECK(!is_unchanged(was, now));
    auto known = was;
    known.checksum = "abc";
    now = {.path = "/image", .size = 3, .modified = 6, .checksum = "abc"};
    CHECK(is_unchanged(known, now));
    now.modified = was.modified;
    CHECK(!is_unchanged(was, now));  // it is not known what its contents were
    now.checksum = "def";
    CHECK(!is_unchanged(known, now));
}

TEST_CASE("what it needs has to be as it was") {
    const Temporary directory;
    const auto image = directory.path / "image";
    write(image, "abc");
    const UniqueFd fd{::open(image.c_str(), O_RDONLY | O_CLOEXEC)};
    const auto store = directory.path / "snapshot";
    {
        SnapshotDraft draft{store, "ready"};
        write(draft.path() / "state", "abcd");
        Manifest manifest;
        manifest.image = {known_file(image, "raw", fd.get())};
        draft.finish(manifest, false);
        draft.keep();
    }
    const auto snapshot = SnapshotStore{store}.open("ready");
    CHECK(snapshot.open(snapshot.manifest().image.front()));
    struct timespec times[2] = {{1, 0}, {1, 0}};
    REQUIRE(::utimensat(AT_FDCWD, image.c_str(), times, 0) == 0);
    CHECK(failure_of([&] {
              (void)snapshot.open(snapshot.manifest().image.front());
          }).ends_with("image' was changed since it was made"));
    write(store / "ready" / "state", "longer");
    CHECK(failure_of([&] { (void)snapshot.open("state"); }) ==
          "snapshot 'ready': 'state' has 6 bytes, and had 4 when it was made");
}
