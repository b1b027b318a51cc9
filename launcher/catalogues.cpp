#include "launcher/catalogues.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <system_error>

#include "images/error.h"
#include "launcher/directories.h"
#include "launcher/failure.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

std::optional<fs::path> from_environment(const char* variable) {
    const char* value = std::getenv(variable);
    return value != nullptr && *value != '\0' ? std::optional<fs::path>{value} : std::nullopt;
}

std::optional<fs::path> users_own() {
    if (auto config = from_environment("XDG_CONFIG_HOME")) return *config / "qvm/images.json";
    if (auto home = from_environment("HOME")) return *home / ".config/qvm/images.json";
    return std::nullopt;
}

void add(std::vector<images::CatalogueEntry>& catalogue, const std::optional<fs::path>& file,
         bool required) {
    if (!file) return;
    const auto text = read_file(*file);
    if (!text && errno == ENOENT && !required) return;
    try {
        if (!text) throw images::Error(std::generic_category().message(errno));
        for (auto& entry : images::parse_catalogue(*text)) {
            // gpgv would look for a mere name in ~/.gnupg.
            if (!entry.keyring.empty())
                entry.keyring = fs::absolute(*file).parent_path() / entry.keyring;
            catalogue.push_back(std::move(entry));
        }
    } catch (const images::Error& error) {
        throw Failure(fmt::format("read catalogue '{}': {}", file->string(), error.what()));
    }
}

}  // namespace

std::vector<images::CatalogueEntry> read_catalogues() {
    auto catalogue = images::built_in_catalogue();
    add(catalogue, "/etc/qvm/images.json", false);
    add(catalogue, users_own(), false);
    add(catalogue, from_environment("QVM_CATALOGUE"), true);
    return catalogue;
}

std::optional<images::CatalogueEntry> find_in_catalogues(const std::string& name,
                                                         Architecture architecture) {
    return images::find_image(read_catalogues(), name, to_string(architecture));
}

std::string stored_name(const std::string& name, Architecture architecture, Architecture host) {
    return architecture == host ? name : fmt::format("{}-{}", name, to_string(architecture));
}

}  // namespace qvm
