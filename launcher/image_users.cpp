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

    /// A user, of which `files` calls its argument with each file; or throws Failure.
    template <typename Files>
    void add(ImageUser user, const Files& files) {
        try {
            files([&](const fs::path& file) { add(file, user); });
        } catch (const Failure& failure) {
            user.unreadable = failure.what();
            users_.unreadable.push_back(std::move(user));
        }
    }

    ImageUsers take() { return std::move(users_); }

  private:
    void add(const fs::path& file, const ImageUser& user) {
        const auto inode = inode_of(file);
        const auto digest = inode ? digests_.find(*inode) : digests_.end();
        if (digest != digests_.end()) users_.known[digest->second].push_back(user);
    }

    std::map<Inode, std::string> digests_;
    ImageUsers users_;
};

template <typename Add>
void files_of(const VmOptions& vm, const Add& add) {
    if (vm.image) add(*vm.image);
    for (const auto& drive : vm.drives) add(drive.file);
}

void add_snapshots(const SnapshotStore& store, ImageUser::Kind kind, Users& users) {
    for (const auto& name : store.names())
        users.add({kind, name}, [&](const auto& add) {
            const auto file = store.path(name) / snapshot_files::manifest;
            const auto text = read_file(file);
            if (!text && errno == ENOENT) return;  // it is being removed
            naming(fmt::format("read '{}'", file.string()), [&] {
                if (!text) throw Failure(reason());
                const auto manifest = parse_manifest(parse_object(*text));
                for (const auto* files : {&manifest.image, &manifest.others})
                    for (const auto& known : *files) add(known.path);
            });
        });
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

std::vector<ImageUser> ImageUsers::of(const std::string& digest) const {
    const auto found = known.find(digest);
    return found == known.end() ? std::vector<ImageUser>{} : found->second;
}

std::vector<ImageUser> ImageUsers::in_the_way(const std::string& digest, bool force) const {
    auto those = of(digest);
    those.insert(those.end(), unreadable.begin(), unreadable.end());
    std::erase_if(those, [&](const auto& user) {
        return user.kind == ImageUser::Kind::warm || (force && !user.needs_it());
    });
    return those;
}

ImageUsers image_users(const Directories& directories, const ImageStore& store) {
    using Kind = ImageUser::Kind;
    Users users{store};
    const DefinitionStore definitions{directories};
    // Those that run come first: what one of them leaves when it ends meanwhile is seen then.
    for (const auto& name : living_vms(directories.run))
        users.add({Kind::running, name}, [&](const auto& add) {
            const auto vm = read_vm(directories.run, name);
            if (!vm) return;  // it has ended
            const auto* spec = vm->json().if_contains("spec");
            if (spec == nullptr || !spec->is_object()) throw Failure("its state has no 'spec'");
            files_of(vm_options_from(spec->get_object()), add);
        });
    for (const auto& name : definitions.names())
        users.add({Kind::created, name}, [&](const auto& add) {
            if (definitions.exists(name)) files_of(definitions.read(name).vm, add);
        });
    add_snapshots(SnapshotStore{directories.snapshots()}, Kind::snapshot, users);
    // Of a warm start nothing is lost that is not made again.
    add_snapshots(SnapshotStore{directories.warm()}, Kind::warm, users);
    return users.take();
}

}  // namespace qvm
