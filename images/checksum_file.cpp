#include "images/checksum_file.h"

#include <algorithm>
#include <string>
#include <vector>

#include "images/error.h"

namespace qvm::images {

namespace {

std::vector<std::string_view> words_of(std::string_view line) {
    constexpr std::string_view blank = " \t\r";
    std::vector<std::string_view> words;
    for (auto begin = line.find_first_not_of(blank); begin != line.npos;
         begin = line.find_first_not_of(blank, begin)) {
        const auto end = std::min(line.find_first_of(blank, begin), line.size());
        words.push_back(line.substr(begin, end - begin));
        begin = end;
    }
    return words;
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
    const auto words = words_of(line);
    if (words.empty() || words.size() > 4) return std::nullopt;
    const auto checksum =
        words.size() == 4 ? checksum_in(words[3], words[0]) : checksum_in(words[0], {});
    if (!checksum) return std::nullopt;
    if (words.size() == 1) return Line{*checksum, {}};
    auto file = words[1];
    if (words.size() == 2) {
        if (file.starts_with('*')) file.remove_prefix(1);  // it was read as binary
        return Line{*checksum, base_name(file)};
    }
    if (words.size() != 4 || words[2] != "=" || !file.starts_with('(') || !file.ends_with(')'))
        return std::nullopt;
    return Line{*checksum, base_name(file.substr(1, file.size() - 2))};
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
