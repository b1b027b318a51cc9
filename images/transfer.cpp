#include "images/transfer.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <utility>

namespace qvm::images {

namespace {

using Kind = Verdict::Kind;

std::optional<std::uint64_t> number_in(std::string_view text) {
    std::uint64_t value = 0;
    const auto* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    return error == std::errc{} && rest == end ? std::optional{value} : std::nullopt;
}

bool is_same_word(std::string_view one, std::string_view other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](char a, char b) {
        return std::tolower(static_cast<unsigned char>(a)) ==
               std::tolower(static_cast<unsigned char>(b));
    });
}

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view blank = " \t\r\n";
    const auto begin = text.find_first_not_of(blank);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(blank) - begin + 1);
}

/// "bytes 5-9/10", "bytes */10"
struct Range {
    std::optional<std::uint64_t> first{};
    std::optional<std::uint64_t> size{};
};

Range parse_range(std::string_view text) {
    constexpr std::string_view unit = "bytes ";
    if (!text.starts_with(unit)) return {};
    text.remove_prefix(unit.size());
    const auto slash = text.find('/');
    if (slash == std::string_view::npos) return {};
    const auto part = text.substr(0, slash);
    return {number_in(part.substr(0, part.find('-'))), number_in(text.substr(slash + 1))};
}

}  // namespace

bool can_go_on(const Partial& partial) {
    return partial.size > 0 && !partial.validator.empty();
}

void read_header(Answer& answer, std::string_view line) {
    line = trimmed(line);
    if (line.starts_with("HTTP/")) {
        const auto words = line.substr(std::min(line.find(' '), line.size()));
        answer = {.status = static_cast<int>(number_in(trimmed(words).substr(0, 3)).value_or(0))};
        return;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos) return;
    const auto name = line.substr(0, colon);
    const auto value = trimmed(line.substr(colon + 1));
    if (is_same_word(name, "ETag")) answer.etag = value;
    if (is_same_word(name, "Last-Modified")) answer.last_modified = value;
    if (is_same_word(name, "Content-Range")) answer.content_range = value;
    if (is_same_word(name, "Content-Length")) answer.length = number_in(value);
}

std::string validator_of(const Answer& answer) {
    if (answer.status == 0) return {};
    if (answer.etag.starts_with('"')) return answer.etag;
    return answer.last_modified;
}

Verdict judge(const Partial& partial, const Answer& answer) {
    const auto range = parse_range(answer.content_range);
    switch (answer.status) {
        case 0:
        case 200:
            return {Kind::begin, answer.length};
        case 206:
            return {
                can_go_on(partial) && range.first == partial.size ? Kind::append : Kind::restart,
                range.size};
        case 416:
            return {can_go_on(partial) && range.size == partial.size ? Kind::whole : Kind::restart,
                    range.size};
        default:
            return {Kind::refused};
    }
}

bool is_passing(int status) {
    // 501 and 505: it never will.
    return status == 408 || status == 429 || (status >= 500 && status != 501 && status != 505);
}

std::string describe_status(int status) {
    constexpr std::array<std::pair<int, const char*>, 12> names{{{400, "Bad Request"},
                                                                 {401, "Unauthorized"},
                                                                 {403, "Forbidden"},
                                                                 {404, "Not Found"},
                                                                 {408, "Request Timeout"},
                                                                 {410, "Gone"},
                                                                 {416, "Range Not Satisfiable"},
                                                                 {429, "Too Many Requests"},
                                                                 {500, "Internal Server Error"},
                                                                 {502, "Bad Gateway"},
                                                                 {503, "Service Unavailable"},
                                                                 {504, "Gateway Timeout"}}};
    auto text = "HTTP status " + std::to_string(status);
    for (const auto& [number, name] : names)
        if (number == status) text += " (" + std::string{name} + ")";
    return text;
}

}  // namespace qvm::images
