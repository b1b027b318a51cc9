#pragma once

#include <string>
#include <string_view>

/// RFC 4648, section 4.
namespace qvm {

std::string to_base64(std::string_view bytes);
/// Throws Failure for what is none.
std::string from_base64(std::string_view text);

}  // namespace qvm
