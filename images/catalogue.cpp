#include "images/catalogue.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "images/catalogue_text.h"
#include "images/error.h"
#include "images/url.h"

namespace qvm::images {

namespace json = boost::json;

namespace {

bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
}

Error wrong(const std::string& entry, const std::string& why) {
    return Error("'" + entry + "': " + why);
}

std::string text_at(const json::object& object, const char* key, const std::string& entry) {
    const auto* value = object.if_contains(key);
    if (value == nullptr) return {};
    if (!value->is_string()) throw wrong(entry, std::string{key} + " is not a string");
    return std::string{value->get_string()};
}

std::string name_in(std::string name, const std::string& entry) {
    if (!is_image_name(name)) throw wrong(entry, "'" + name + "' is no name of an image");
    return name;
}

std::string url_at(const json::object& object, const char* key, const std::string& entry) {
    auto url = text_at(object, key, entry);
    if (!url.empty() && !is_url(url)) throw wrong(entry, std::string{key} + " is no URL");
    return url;
}

CatalogueEntry entry_in(const json::value& value, const std::string& number) {
    if (!value.is_object()) throw wrong(number, "is not an object");
    const auto& object = value.get_object();
    constexpr std::array keys{"name",      "aliases",   "architecture", "url",
                              "checksums", "signature", "keyring",      "keyring_package"};
    CatalogueEntry entry;
    entry.name = name_in(text_at(object, "name", number), number);
    for (const auto& [key, unused] : object)
        if (std::find(keys.begin(), keys.end(), key) == keys.end())
            throw wrong(entry.name, "'" + std::string{key} + "' is not known");
    if (const auto* aliases = object.if_contains("aliases")) {
        if (!aliases->is_array()) throw wrong(entry.name, "aliases is not an array");
        for (const auto& alias : aliases->get_array()) {
            if (!alias.is_string()) throw wrong(entry.name, "an alias is not a string");
            entry.aliases.push_back(name_in(std::string{alias.get_string()}, entry.name));
        }
    }
    entry.architecture = text_at(object, "architecture", entry.name);
    if (entry.architecture.empty()) entry.architecture = "x86_64";
    entry.url = url_at(object, "url", entry.name);
    if (entry.url.empty()) throw wrong(entry.name, "there is no url");
    entry.checksums = url_at(object, "checksums", entry.name);
    entry.signature = url_at(object, "signature", entry.name);
    entry.keyring = text_at(object, "keyring", entry.name);
    entry.keyring_package = text_at(object, "keyring_package", entry.name);
    if (entry.checksums.empty() && !entry.keyring.empty())
        throw wrong(entry.name, "there is a keyring, and no list of checksums");
    if (!entry.signature.empty() && entry.keyring.empty())
        throw wrong(entry.name, "there is a signature, and no keyring");
    return entry;
}

}  // namespace

bool is_image_name(std::string_view text) {
    const auto colon = text.find(':');
    const auto is_part = [&](std::string_view part) {
        return !part.empty() && part.front() != '.' && part.front() != '-' &&
               std::all_of(part.begin(), part.end(), is_word);
    };
    // A clone's, of a snapshot, begins with that word, and so does a digest.
    return text.size() <= longest_name && !text.starts_with("snapshot:") &&
           !text.starts_with("sha256:") && is_part(text.substr(0, colon)) &&
           (colon == text.npos || is_part(text.substr(colon + 1)));
}

std::string image_name_of(std::string_view file) {
    constexpr std::array<std::string_view, 12> ends{".xz",    ".gz",  ".zst",  ".bz2",
                                                    ".qcow2", ".raw", ".img",  ".vmdk",
                                                    ".vdi",   ".vhd", ".vhdx", ".ova"};
    for (const auto end : ends)
        if (file.ends_with(end)) file.remove_suffix(end.size());
    std::string name{file};
    for (char& c : name)
        if (!is_word(c)) c = '-';
    name.erase(0, name.find_first_not_of(".-"));
    name.resize(std::min(name.size(), longest_name));
    return name.empty() ? "image" : name;
}

std::vector<CatalogueEntry> parse_catalogue(std::string_view text) {
    json::error_code error;
    const auto value = json::parse(text, error);
    if (error) throw Error("is no JSON: " + error.message());
    const auto* images = value.is_object() ? value.get_object().if_contains("images") : nullptr;
    if (images == nullptr || !images->is_array()) throw Error("has no array of images");
    std::vector<CatalogueEntry> catalogue;
    for (const auto& entry : images->get_array())
        catalogue.push_back(entry_in(entry, "image " + std::to_string(catalogue.size() + 1)));
    return catalogue;
}

const std::vector<CatalogueEntry>& built_in_catalogue() {
    static const auto catalogue = parse_catalogue(catalogue_text);
    return catalogue;
}

std::optional<CatalogueEntry> find_image(const std::vector<CatalogueEntry>& catalogue,
                                         std::string_view name, std::string_view architecture) {
    const auto is_it = [&](const CatalogueEntry& entry) {
        return entry.architecture == architecture &&
               (entry.name == name ||
                std::find(entry.aliases.begin(), entry.aliases.end(), name) != entry.aliases.end());
    };
    const auto found = std::find_if(catalogue.rbegin(), catalogue.rend(), is_it);
    return found == catalogue.rend() ? std::nullopt : std::optional{*found};
}

}  // namespace qvm::images
