#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qvm::images {

/// Characters of an image's name.
inline constexpr std::size_t longest_name = 64;

/// Whether a text may name an image: "debian:12", "my-image". What is a path has a slash, or begins
/// with a dot. Pure.
bool is_image_name(std::string_view text);

/// A name for an image that has none, of its file's: without what that ends in. Pure.
std::string image_name_of(std::string_view file);

/// Where an image of that name comes from.
struct CatalogueEntry {
    std::string name{};                  ///< "debian:12"
    std::vector<std::string> aliases{};  ///< "debian:bookworm"
    std::string architecture{};          ///< as uname(1) and QEMU call it: "x86_64", "aarch64"
    std::string url{};
    std::string checksums{};  ///< URL of the list that has the image's; empty: there is none
    std::string signature{};  ///< URL of that list's signature; empty: it is signed itself, if ...
    std::string keyring{};    ///< ... there is a key, a file for gpgv(1); empty: it is not signed
    std::string keyring_package{};  ///< Debian's, that has the key

    bool operator==(const CatalogueEntry&) const = default;
};

/// Reads a catalogue: {"images": [{"name": ..., "url": ...}]}. Throws Error that says what is
/// wrong, and in which entry. Pure.
std::vector<CatalogueEntry> parse_catalogue(std::string_view json);

/// The one that comes with qvm.
const std::vector<CatalogueEntry>& built_in_catalogue();

/// The last entry of that name and architecture. Pure.
std::optional<CatalogueEntry> find_image(const std::vector<CatalogueEntry>& catalogue,
                                         std::string_view name, std::string_view architecture);

}  // namespace qvm::images
