#pragma once

#include <string>
#include <string_view>

namespace qvm::images {

/// Why a signature is not good, by what gpgv(1) says to --status-fd (GnuPG's doc/DETAILS); empty
/// where all that there are are good, by keys that are neither expired nor revoked. Pure.
std::string problem_of_signature(std::string_view status);

}  // namespace qvm::images
