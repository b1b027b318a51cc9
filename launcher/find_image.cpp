#include "launcher/find_image.h"

#include <fmt/format.h>

#include <system_error>

#include "launcher/catalogues.h"
#include "launcher/failure.h"
#include "launcher/output.h"
#include "launcher/pull.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

/// The image that a name stands for, if it is there; vm.image is its file then.
bool take(const ImageStore& store, const std::string& name, VmOptions& vm) {
    const auto record = store.find(name);
    if (!record) return false;
    const auto file = store.blob(record->digest);
    if (!fs::exists(file))
        throw Failure(fmt::format("image '{}': '{}' is gone", name, file.string()),
                      "qvm image pull or import it again");
    store.note_use(name);
    vm.image_name = vm.image->string();
    vm.image = file;
    return true;
}

Failure no_such_image(const std::string& name) {
    return Failure{
        fmt::format("open image '{}': No such file or directory, and no image of that name", name),
        "qvm image ls, and qvm image ls --catalogue for those that can be pulled"};
}

}  // namespace

UniqueFd find_image(VmOptions& vm, const Directories& directories, FindImage how) {
    if (!vm.image || vm.image_name) return {};
    const auto name = vm.image->string();
    if (images::is_url(name))
        throw Failure(fmt::format("open image '{}': is a URL", name), "qvm image pull " + name);
    std::error_code ignored;
    const auto file = fs::symlink_status(*vm.image, ignored);
    // A directory is no image; and a path that is none is an error of whoever opens it.
    if ((fs::exists(file) && !fs::is_directory(file)) || !images::is_image_name(name)) return {};
    const ImageStore store{directories.images()};
    if (store.find(name)) {
        auto lock = store.share();
        if (take(store, name, vm)) return lock;
    }
    const auto entry = images::find_image(read_catalogues(), name, own_architecture());
    if (!entry && fs::exists(file)) return {};
    if (!entry) throw no_such_image(name);
    if (!store.find(entry->name)) {
        if (!how.pull)
            throw Failure(fmt::format("image '{}': is not here yet", name),
                          "qvm image pull " + name);
        if (!how.quiet) say(fmt::format("qvm: no image '{}' here: pulling it", name));
        (void)pull(store, {.entry = *entry, .quiet = how.quiet});
    }
    auto lock = store.share();
    if (take(store, entry->name, vm)) return lock;
    throw Failure(fmt::format("image '{}': was removed meanwhile", entry->name));
}

std::string name_in_store(const ImageStore& store, const std::string& name) {
    if (store.find(name)) return name;
    const auto entry = images::find_image(read_catalogues(), name, own_architecture());
    if (entry && store.find(entry->name)) return entry->name;
    (void)store.read(name);
    return name;
}

}  // namespace qvm
