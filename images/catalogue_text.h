#pragma once

#include <string_view>

namespace qvm::images {

/// images/catalogue.json, embedded by CMake.
extern const std::string_view catalogue_text;

}  // namespace qvm::images
