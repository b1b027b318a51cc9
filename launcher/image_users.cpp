#include "launcher/image_users.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <set>
#include <utility>

#include "launcher/definition.h"
#include "launcher/failure.h"
#include "launcher/json_text.h"
#include "launcher/snapshot.h"
#include "launcher/vm_state.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

using Inode = std::pair<dev_t, ino_t>;

std::optional<Inode> inode_of(const fs::path& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return std::nullopt;
    return Inode{status.st_dev, status.st_ino};
}

/// Files are known by their inode: a path may lead to one by many ways.
class Users {
  public:
    explicit Users(const ImageStore& store) {
        for (const auto& digest : store.digests())
            if (const auto inode = inode_of(store.blob(digest))) digests_[*inode] = digest;
    }

    void add(const fs::path& file, const ImageUser& user) {
        const auto inode = inode_of(file);
        const auto digest = inode ? digests_.find(*inode) : digests_.end();
        if (digest != digests_.end()) users_[digest->second].push_back(user);
    }
    void add(const VmOptions& vm, const ImageUser& user) {
        if (vm.image) add(*vm.image, user);
        for (const auto& drive : vm.drives) add(drive.file, user);
    }

    ImageUsers take() { return std::move(users_); }

  private:
    std::map<Inode, std::string> digests_;
    ImageUsers users_;
};

void add_snapshots(const SnapshotStore& store, ImageUser::Kind kind, Unreadable unreadable,
                   Users& users) {
    for (const auto& name : store.names()) {
        const auto text = read_file(store.path(name) / snapshot_files::manifest);
        if (!text) continue;  // it is being removed
        try {
            const auto manifest = parse_manifest(parse_object(*text));
            for (const auto* files : {&manifest.image, &manifest.others})
                for (const auto& file : *files) users.add(file.path, {kind, name});
        } catch (const Failure& failure) {
            if (unreadable == Unreadable::is_an_error)
                throw Failure(fmt::format("snapshot '{}': its manifest {}", name, failure.what()));
        }
    }
}

}  // namespace

std::string to_string(const ImageUser& user) {
    switch (user.kind) {
        case ImageUser::Kind::snapshot:
            return "snapshot:" + user.name;
        case ImageUser::Kind::warm:
            return "--warm";
        case ImageUser::Kind::running:
        case ImageUser::Kind::created:
            break;
    }
    return user.name;
}

std::vector<std::string> names_of(const std::vector<ImageUser>& users) {
    std::set<std::string> names;
    for (const auto& user : users) names.insert(to_string(user));
    return {names.begin(), names.end()};
}

ImageUsers image_users(const Directories& directories, const ImageStore& store,
                       Unreadable unreadable) {
    using Kind = ImageUser::Kind;
    Users users{store};
    const DefinitionStore definitions{directories};
    // Those that run come first: what one of them leaves when it ends meanwhile is seen then.
    for (const auto& vm : read_vms(directories.run))
        if (const auto* spec = vm.json().if_contains("spec"); spec != nullptr && spec->is_object())
            users.add(vm_options_from(spec->get_object()), {Kind::running, vm.text("name")});
    for (const auto& name : definitions.names()) try {
            users.add(definitions.read(name).vm, {Kind::created, name});
        } catch (const Failure&) {
            if (unreadable == Unreadable::is_an_error) throw;
        }
    add_snapshots(SnapshotStore{directories.snapshots()}, Kind::snapshot, unreadable, users);
    // Of a warm start nothing is lost that is not made again.
    add_snapshots(SnapshotStore{directories.warm()}, Kind::warm, Unreadable::is_passed_over, users);
    return users.take();
}

}  // namespace qvm
