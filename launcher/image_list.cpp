// image ls, inspect: what the store says of images, and the catalogue.

#include <fmt/format.h>

#include <boost/json.hpp>
#include <system_error>

#include "images/url.h"
#include "launcher/catalogues.h"
#include "launcher/commands.h"
#include "launcher/definition.h"
#include "launcher/failure.h"
#include "launcher/find_image.h"
#include "launcher/image_store.h"
#include "launcher/image_users.h"
#include "launcher/json_text.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/table.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

std::string time_text(std::chrono::file_clock::time_point time) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
        std::chrono::file_clock::to_sys(time).time_since_epoch());
    return timestamp(seconds.count());
}

json::value or_null(const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
}

/// What `ls --json` and `inspect` say of one.
json::object describe(const ImageStore& store, const std::string& name, const ImageRecord& record,
                      const ImageUsers& users) {
    const auto file = store.blob(record.digest);
    if (!name.empty() && !fs::exists(file))
        throw Failure(fmt::format("image '{}': its file is gone", name),
                      fmt::format("qvm image rm {}; or pull or import it again", name));
    json::value checked = nullptr;
    if (!record.checksum.empty())
        checked = json::object{{"checksum", record.checksum},
                               {"source", record.checksum_source},
                               {"signature", or_null(record.signature)}};
    return {{"name", name},
            {"digest", "sha256:" + record.digest},
            {"format", record.format},
            {"virtual_size", record.virtual_size},
            {"size", record.size},
            {"disk_usage", store.space_of(record.digest)},
            {"architecture", or_null(record.architecture)},
            {"source", record.source},
            {"checked", std::move(checked)},
            {"created", record.created},
            {"last_used", time_text(store.last_use(name))},
            {"used_by", json::value_from(names_of(users.of(record.digest)))},
            {"path", file.string()}};
}

/// The same of what has lost its name, of which nothing else is known.
json::object describe(const ImageStore& store, const std::string& digest, const ImageUsers& users) {
    auto object = describe(store, "", {.digest = digest, .format = {}}, users);
    std::error_code ignored;
    object["size"] = fs::file_size(store.blob(digest), ignored);
    for (const char* key : {"name", "format", "virtual_size", "source", "created", "last_used"})
        object[key] = nullptr;
    return object;
}

/// "-" for what is null.
std::string text_at(const json::object& object, const char* key) {
    const auto& value = object.at(key);
    return value.is_string() ? std::string{value.get_string()} : "-";
}

std::string size_at(const json::object& object, const char* key) {
    const auto& value = object.at(key);
    return value.is_null() ? "-" : size_text(value.to_number<std::uint64_t>());
}

void print_table(const json::array& images) {
    constexpr std::size_t prefix = 7, shown = 12;  // of "sha256:" and of the digits
    std::vector<std::vector<std::string>> rows{
        {"NAME", "DIGEST", "FORMAT", "SIZE", "ON DISK", "LAST USED", "USED BY"}};
    for (const auto& value : images) {
        const auto& image = value.get_object();
        const auto users = json::value_to<std::vector<std::string>>(image.at("used_by"));
        const auto used = age_of(text_at(image, "last_used"));
        rows.push_back({text_at(image, "name"), text_at(image, "digest").substr(prefix, shown),
                        text_at(image, "format"), size_at(image, "virtual_size"),
                        size_at(image, "disk_usage"), used.empty() ? "-" : used + " ago",
                        users.empty() ? "-" : joined(users)});
    }
    print(to_table(rows, use_colour()));
}

json::object to_json(const images::CatalogueEntry& entry) {
    return {{"name", entry.name},
            {"aliases", json::value_from(entry.aliases)},
            {"architecture", entry.architecture},
            {"url", entry.url},
            {"checksums", or_null(entry.checksums)},
            {"signature", or_null(entry.signature)},
            {"keyring", or_null(entry.keyring)},
            {"keyring_package", or_null(entry.keyring_package)}};
}

/// Those for this host; as JSON all.
int list_catalogue(const ImageLsOptions& options) {
    const auto catalogue = read_catalogues();
    if (options.json) {
        json::array array;
        for (const auto& entry : catalogue) array.push_back(to_json(entry));
        print(json::serialize(array) + "\n");
        return status::ok;
    }
    const auto architecture = to_string(host_architecture());
    std::vector<std::vector<std::string>> rows;
    if (!options.names) rows.push_back({"NAME", "ALSO", "URL"});
    for (const auto& entry : catalogue) {
        // A later one of the same name is the one that counts.
        if (images::find_image(catalogue, entry.name, architecture) != entry) continue;
        if (options.names)
            rows.push_back({entry.name});
        else
            rows.push_back({entry.name, entry.aliases.empty() ? "-" : joined(entry.aliases),
                            images::without_secrets(entry.url)});
    }
    print(to_table(rows, !options.names && use_colour()));
    return status::ok;
}

}  // namespace

int image_ls(const ImageLsOptions& options) {
    if (options.catalogue) return list_catalogue(options);
    const auto directories = find_directories();
    const ImageStore store{directories.images()};
    if (options.names) {
        for (const auto& name : store.names()) print(name + "\n");
        return status::ok;
    }
    const auto users = image_users(directories, store);
    const auto records = store.records();
    json::array array;
    int exit_status = status::ok;
    for (const auto& [name, failure] : records.broken) exit_status = say_failure(failure);
    for (const auto& [name, record] : records.known) try {
            array.push_back(describe(store, name, record, users));
        } catch (const Failure& failure) {
            exit_status = say_failure(failure);  // one must not hide the others
        }
    for (const auto& digest : store.digests())
        if (records.names_of(digest).empty()) array.push_back(describe(store, digest, users));
    if (options.json)
        print(json::serialize(array) + "\n");
    else
        print_table(array);
    return exit_status;
}

int image_inspect(const ImageInspectOptions& options) {
    const auto directories = find_directories();
    const ImageStore store{directories.images()};
    const auto users = image_users(directories, store);
    json::array array;
    int exit_status = status::ok;
    for (const auto& text : options.names) try {
            const auto [name, record] = image_in_store(store, text);
            array.push_back(name.empty() ? describe(store, record.digest, users)
                                         : describe(store, name, record, users));
        } catch (const Failure& failure) {
            exit_status = say_failure(failure);
        }
    if (!array.empty()) print(pretty(array) + "\n");
    return exit_status;
}

}  // namespace qvm
