#include "launcher/find_image.h"

#include <fmt/format.h>

#include <system_error>

#include "images/url.h"
#include "launcher/catalogues.h"
#include "launcher/failure.h"
#include "launcher/machine.h"
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

Failure no_such_image(const std::string& name, const std::optional<ImageRecord>& other,
                      Architecture architecture) {
    if (other)
        return Failure{fmt::format("image '{}': is of {}, and there is none of {}", name,
                                   other->architecture, to_string(architecture))};
    return Failure{
        fmt::format("open image '{}': No such file or directory, and no image of that name", name),
        "qvm image ls, and qvm image ls --catalogue for those that can be pulled"};
}

bool names_directory(const fs::path& path) {
    std::error_code ignored;
    return fs::is_directory(fs::symlink_status(path, ignored));
}

/// Whether vm.image is not a path but may be a name. A directory is no image; and a path that is
/// none is an error of whoever opens it.
bool names_image(const VmOptions& vm) {
    if (!vm.image || vm.image_name) return false;
    const auto name = vm.image->string();
    if (const auto shown = images::without_secrets(name); images::is_url(name))
        throw Failure(fmt::format("open image '{}': is a URL", shown), "qvm image pull " + shown);
    std::error_code ignored;
    const auto file = fs::symlink_status(*vm.image, ignored);
    return (!fs::exists(file) || fs::is_directory(file)) && images::is_image_name(name);
}

/// Whether there is one that a VM of that architecture may have. What is not known may be.
bool is_for(const std::optional<ImageRecord>& record, std::optional<Architecture> architecture) {
    return record && (!architecture || record->architecture.empty() ||
                      record->architecture == to_string(*architecture));
}

}  // namespace

UniqueFd find_image(VmOptions& vm, const Directories& directories, FindImage how) {
    if (!names_image(vm)) return {};
    const auto name = vm.image->string();
    const ImageStore store{directories.images()};
    if (is_for(store.find(name), vm.arch)) {
        auto lock = store.share();
        if (take(store, name, vm)) return lock;
    }
    const auto architecture = vm.arch.value_or(host_architecture());
    auto entry = find_in_catalogues(name, architecture);
    if (!entry && names_directory(*vm.image)) return {};
    if (!entry) throw no_such_image(name, store.find(name), architecture);
    entry->name = stored_name(entry->name, architecture, host_architecture());
    const auto there = store.find(entry->name);
    if (there && !is_for(there, architecture))
        throw no_such_image(entry->name, there, architecture);
    if (!there) {
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
    const auto entry = find_in_catalogues(name, host_architecture());
    if (entry && store.find(entry->name)) return entry->name;
    (void)store.read(name);
    return name;
}

std::optional<Architecture> known_architecture(const VmOptions& vm,
                                               const Directories& directories) {
    if (!names_image(vm)) return std::nullopt;
    // By a name of the catalogue one means the host's.
    const auto record = ImageStore{directories.images()}.find(vm.image->string());
    if (!record || record->architecture.empty()) return std::nullopt;
    return parse_architecture(record->architecture);
}

}  // namespace qvm
