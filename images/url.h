#pragma once

#include <string>
#include <string_view>

/// What images are pulled from. Pure.
namespace qvm::images {

/// Whether it is a URL that an image is pulled from: http, https or file, in whatever case.
bool is_url(std::string_view text);

/// Whether it has that scheme ("https"), in whatever case.
bool has_scheme(std::string_view url, std::string_view scheme);

/// As it may be shown and kept: without user name, password and query, which may have a token.
/// "https://host/disk.qcow2?..."
std::string without_secrets(std::string_view url);

/// The last part of its path, as a file name: "disk.qcow2", "my disk.qcow2" of "my%20disk.qcow2".
/// Empty where it ends in a slash.
std::string file_name_of(std::string_view url);

}  // namespace qvm::images
