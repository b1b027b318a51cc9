#include "launcher/find_image.h"

#include <fmt/format.h>

#include <array>
#include <system_error>
#include <utility>

#include "images/url.h"
#include "launcher/catalogues.h"
#include "launcher/failure.h"
#include "launcher/machine.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

/// Why there is none; and what there is, by that name, for another machine.
Failure no_such_image(const ImageStore& store, const std::string& name, Architecture architecture) {
    constexpr std::array all{Architecture::x86_64, Architecture::aarch64};
    const auto text =
        fmt::format("open image '{}': No such file or directory, and no image of that name", name);
    for (const auto other : all) {
        if (const auto stored = fmt::format("{}-{}", name, to_string(other)); store.has(stored))
            return Failure{text, fmt::format("there is '{}'", stored)};
        if (other != architecture && find_in_catalogues(name, other))
            return Failure{text, fmt::format("there is one for --arch {}", to_string(other))};
    }
    return Failure{text, "qvm image ls, and qvm image ls --catalogue for those that can be pulled"};
}

Failure is_of_another(const std::string& name, const ImageRecord& record,
                      Architecture architecture) {
    return Failure{fmt::format("image '{}': is of {}, and there is none of {}", name,
                               record.architecture, to_string(architecture))};
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

/// What vm.image means: the image's name in the store, and what that stands for, or, where it is
/// not there, how it can be. The name is empty for a path.
struct Meaning {
    std::string name{};
    std::optional<ImageRecord> record{};
    std::optional<images::CatalogueEntry> entry{};
};

Meaning meaning_of(const VmOptions& vm, const ImageStore& store) {
    const auto name = vm.image->string();
    auto record = store.find(name);
    if (is_for(record, vm.arch)) return {.name = name, .record = std::move(record)};
    const auto architecture = vm.arch.value_or(host_architecture());
    auto entry = find_in_catalogues(name, architecture);
    if (!entry && names_directory(*vm.image)) return {};
    if (!entry && record) throw is_of_another(name, *record, architecture);
    if (!entry) throw no_such_image(store, name, architecture);
    entry->name = stored_name(entry->name, architecture, host_architecture());
    record = store.find(entry->name);
    if (record && !is_for(record, architecture))
        throw is_of_another(entry->name, *record, architecture);
    return {.name = entry->name, .record = std::move(record), .entry = std::move(entry)};
}

std::string pull_command(const VmOptions& vm) {
    return fmt::format("qvm image pull {}{}",
                       vm.arch ? fmt::format("--arch {} ", to_string(*vm.arch)) : "",
                       vm.image->string());
}

}  // namespace

UniqueFd find_image(VmOptions& vm, const Directories& directories, bool is_used) {
    if (!names_image(vm)) return {};
    const auto said = vm.image->string();
    const ImageStore store{directories.images()};
    auto lock = store.share();
    const auto [name, record, entry] = meaning_of(vm, store);
    if (name.empty()) return {};
    if (!record) throw Failure(fmt::format("image '{}': is not here yet", said), pull_command(vm));
    vm.image_name = said;
    vm.image = store.blob(record->digest);
    if (!fs::exists(*vm.image))
        throw Failure(fmt::format("image '{}': its file is gone", said),
                      "qvm image pull or import it again");
    if (!vm.arch && !record->architecture.empty())
        vm.arch = naming(fmt::format("image '{}': '{}'", said, record->architecture),
                         [&] { return parse_architecture(record->architecture); });
    if (is_used) store.note_use(name);
    return lock;
}

std::optional<images::CatalogueEntry> missing_image(const VmOptions& vm,
                                                    const Directories& directories) {
    if (!names_image(vm)) return std::nullopt;
    const auto [name, record, entry] = meaning_of(vm, ImageStore{directories.images()});
    return record ? std::nullopt : entry;
}

std::string name_in_store(const ImageStore& store, const std::string& name) {
    if (store.has(name)) return name;
    const auto entry = find_in_catalogues(name, host_architecture());
    if (entry && store.has(entry->name)) return entry->name;
    (void)store.read(name);
    return name;
}

std::optional<std::string> digest_in_store(const ImageStore& store, const std::string& text) {
    constexpr std::string_view prefix = "sha256:";
    if (!text.starts_with(prefix)) return std::nullopt;
    auto digests = store.digests();
    std::erase_if(digests, [&](const auto& digest) {
        return !digest.starts_with(std::string_view{text}.substr(prefix.size()));
    });
    if (digests.size() == 1) return digests.front();
    throw Failure(fmt::format("image '{}': {}", text,
                              digests.empty() ? "there is none" : "there are several"),
                  "qvm image ls");
}

StoredImage image_in_store(const ImageStore& store, const std::string& text) {
    const auto digest = digest_in_store(store, text);
    if (!digest) {
        const auto name = name_in_store(store, text);
        return {name, store.read(name)};
    }
    const auto records = store.records();
    const auto names = records.names_of(*digest);
    if (names.empty()) return {"", {.digest = *digest, .format = {}}};
    return {names.front(), records.known.at(names.front())};
}

}  // namespace qvm
