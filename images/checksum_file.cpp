#include "images/checksum_file.h"

#include <algorithm>
#include <string>

#include "images/error.h"

namespace qvm::images {

namespace {

constexpr std::string_view blank = " \t\r";

std::string_view trimmed(std::string_view text) {
    text.remove_prefix(std::min(text.find_first_not_of(blank), text.size()));
    return text.substr(0, text.find_last_not_of(blank) + 1);  // npos + 1 is 0
}

/// By the name of its algorithm, or, where there is none, by its length.
std::optional<Checksum> checksum_in(std::string_view word, std::string_view algorithm) {
    if (algorithm.empty()) algorithm = word.size() == 64 ? "SHA256" : "SHA512";
    if (algorithm != "SHA256" && algorithm != "SHA512") return std::nullopt;
    try {
        const auto* kind = algorithm == "SHA256" ? "sha256:" : "sha512:";
        return parse_checksum(kind + std::string{word});
    } catch (const Error&) {
        return std::nullopt;
    }
}

std::string_view base_name(std::string_view path) {
    return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

struct Line {
    Checksum checksum;
    std::string_view file;  ///< empty: whatever the list is beside
};

std::optional<Line> parse_line(std::string_view line) {
    line = trimmed(line);
    const auto first = line.substr(0, line.find_first_of(blank));
    auto rest = trimmed(line.substr(first.size()));
    if (const auto checksum = checksum_in(first, {})) {
        if (rest.starts_with('*')) rest.remove_prefix(1);  // it was read as binary
        return Line{*checksum, base_name(rest)};
    }
    constexpr std::string_view between = ") = ";
    const auto end = rest.rfind(between);
    if (first.empty() || !rest.starts_with('(') || end == rest.npos) return std::nullopt;
    const auto checksum = checksum_in(rest.substr(end + between.size()), first);
    if (!checksum) return std::nullopt;
    return Line{*checksum, base_name(rest.substr(1, end - 1))};
}

/// Calls `take` with each line that has a checksum.
template <typename Take>
void for_each_line(std::string_view list, Take take) {
    for (std::size_t begin = 0; begin < list.size();) {
        const auto end = std::min(list.find('\n', begin), list.size());
        if (const auto line = parse_line(list.substr(begin, end - begin))) take(*line);
        begin = end + 1;
    }
}

}  // namespace

std::optional<Checksum> find_checksum(std::string_view list, std::string_view file) {
    std::optional<Checksum> found;
    for_each_line(list, [&](const Line& line) {
        if (!line.file.empty() && line.file != file) return;
        const auto& one = line.checksum;
        if (found && found->kind == one.kind && *found != one)
            throw Error("it has two checksums for '" + std::string{file} + "'");
        if (!found || one.kind == HashKind::sha512) found = one;
    });
    return found;
}

std::optional<Checksum> only_checksum(std::string_view list) {
    std::optional<Checksum> found;
    bool others = false;
    for_each_line(list, [&](const Line& line) {
        others = others || (found && *found != line.checksum);
        if (!found) found = line.checksum;
    });
    return others ? std::nullopt : found;
}

}  // namespace qvm::images
