#include "launcher/image_users.h"

#include <catch2/catch.hpp>

#include "launcher/definition.h"
#include "launcher/failure.h"
#include "launcher/snapshot.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;

namespace {

struct Host : Temporary {
    Directories directories{path / "run", path / "data", path / "cache"};
    ImageStore store{directories.images()};

    /// The digest of an image of these contents.
    std::string add(const std::string& contents) const {
        ImageDraft draft{store.drafts()};
        draft.write(contents);
        ImageRecord record{.digest = images::checksum(contents), .format = "raw"};
        store.add(std::move(draft), "name", record);
        return record.digest;
    }

    /// The names of those that one is not removed for.
    [[nodiscard]] std::vector<std::string> in_the_way(const std::string& digest, bool force) const {
        return names_of(image_users(directories, store).in_the_way(digest, force));
    }

    [[nodiscard]] std::vector<std::string> users_of(const std::string& digest) const {
        std::vector<std::string> names;
        for (const auto& user : image_users(directories, store).of(digest))
            names.push_back((user.needs_it() ? "needed by " : "") + to_string(user));
        return names;
    }
};

}  // namespace

TEST_CASE("who uses an image of the store, whatever way a path leads to it") {
    const Host host;
    const auto one = host.add("one"), other = host.add("other");
    CHECK(host.users_of(one).empty());
    Definition definition;
    definition.name = "vm";
    definition.virtual_size = 1 << 20;
    fs::create_symlink(host.store.blobs(), host.path / "link");
    definition.vm.image = host.path / "link" / one;
    definition.vm.drives = {parse_drive(host.store.blob(other).string() + ":ro")};
    DefinitionStore{host.directories}.add(definition);
    CHECK(host.users_of(one) == std::vector<std::string>{"needed by vm"});
    CHECK(host.users_of(other) == std::vector<std::string>{"needed by vm"});
}

TEST_CASE("what cannot be read may use any image") {
    using Names = std::vector<std::string>;
    const Host host;
    const auto digest = host.add("one");
    Definition definition;
    definition.name = "vm";
    const DefinitionStore store{host.directories};
    store.add(definition);
    CHECK(host.in_the_way(digest, false).empty());
    const auto file = store.path("vm") / "definition.json";
    write_file(file, R"({"version": 99})");
    CHECK(host.users_of(digest).empty());
    CHECK(host.in_the_way(digest, false) == Names{"vm"});
    CHECK(host.in_the_way(digest, true) == Names{"vm"});
    const auto users = image_users(host.directories, host.store);
    REQUIRE(users.unreadable.size() == 1);
    CHECK(users.unreadable.front().unreadable ==
          "read '" + file.string() + "': has version 99; this qvm knows 1");
    fs::remove_all(store.path("vm"));
    for (const auto& directory : {host.directories.warm(), host.directories.snapshots()}) {
        CHECK(host.in_the_way(digest, false).empty());
        SnapshotDraft draft{directory, "ready"};
        write_file(draft.path() / snapshot_files::manifest, "{}");
        draft.keep();
    }
    CHECK(host.in_the_way(digest, true) == Names{"snapshot:ready"});
}

TEST_CASE("of a VM that runs, and says nothing that can be read, nobody knows what it uses") {
    const Host host;
    const auto digest = host.add("one");
    const VmDirectory vm{host.directories.run, "vm"};
    const auto check = [&] {
        CHECK(host.users_of(digest).empty());
        CHECK(host.in_the_way(digest, false) == std::vector<std::string>{"vm"});
        CHECK(host.in_the_way(digest, true).empty());
    };
    const auto state = vm.path() / "state.json";
    write_file(state, R"({"name": "vm", "spec": {"memory_mib": "much"}})");
    check();
    fs::remove(state);
    fs::create_directory(state);
    check();
    fs::remove(state);
}

TEST_CASE("snapshots and warm starts use what was beneath them") {
    const Host host;
    const auto digest = host.add("one");
    for (const auto& directory : {host.directories.snapshots(), host.directories.warm()}) {
        SnapshotDraft draft{directory, "ready"};
        Manifest manifest;
        manifest.image = {{host.path / "none", "qcow2"}, {host.store.blob(digest), "raw"}};
        draft.write(manifest);
        draft.keep();
    }
    CHECK(host.users_of(digest) == std::vector<std::string>{"needed by snapshot:ready", "--warm"});
    CHECK(host.in_the_way(digest, false) == std::vector<std::string>{"snapshot:ready"});
}
