#include "images/signature.h"

#include <algorithm>
#include <array>
#include <utility>

namespace qvm::images {

namespace {

/// The worst first; of some there is more than one at once.
constexpr std::array<std::pair<std::string_view, const char*>, 7> problems{
    {{"BADSIG", "it is not of this text"},
     {"REVKEYSIG", "its key was revoked"},
     {"EXPKEYSIG", "its key has expired"},
     {"EXPSIG", "it has expired"},
     {"NO_PUBKEY", "its key is not in the keyring"},
     {"ERRSIG", "it cannot be checked"},
     {"NODATA", "there is none"}}};

bool has_line(std::string_view status, std::string_view keyword) {
    constexpr std::string_view prefix = "[GNUPG:] ";
    while (!status.empty()) {
        const auto end = std::min(status.find('\n'), status.size());
        auto line = status.substr(0, end);
        status.remove_prefix(std::min(end + 1, status.size()));
        if (!line.starts_with(prefix)) continue;
        line.remove_prefix(prefix.size());
        if (line.substr(0, line.find(' ')) == keyword) return true;
    }
    return false;
}

}  // namespace

std::string problem_of_signature(std::string_view status) {
    for (const auto& [keyword, problem] : problems)
        if (has_line(status, keyword)) return problem;
    return has_line(status, "GOODSIG") && has_line(status, "VALIDSIG") ? "" : "there is none";
}

}  // namespace qvm::images
