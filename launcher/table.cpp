#include "launcher/table.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <utility>

#include "launcher/output.h"

namespace qvm {

namespace {

std::size_t width_of(const std::string& text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    }));
}

}  // namespace

std::string to_table(std::vector<std::vector<std::string>> rows, bool colour) {
    std::vector<std::size_t> widths;
    for (auto& row : rows) {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t i = 0; i < row.size(); ++i) {
            row[i] = printable(row[i]);
            widths[i] = std::max(widths[i], width_of(row[i]));
        }
    }
    std::string text;
    for (const auto& row : rows) {
        std::string line;
        for (std::size_t i = 0; i < row.size(); ++i)
            line += row[i] + std::string(widths[i] - width_of(row[i]) + 2, ' ');
        line.resize(line.find_last_not_of(' ') + 1);
        const bool bold = colour && text.empty();
        text += (bold ? "\x1b[1m" + line + "\x1b[0m" : line) + '\n';
    }
    return text;
}

std::string in_words(std::int64_t seconds) {
    constexpr std::array<std::pair<std::int64_t, const char*>, 4> units{
        {{86400, "day"}, {3600, "hour"}, {60, "minute"}, {1, "second"}}};
    for (const auto& [size, name] : units)
        // "90 minutes" says more than "1 hour", and "1 minute" more than nothing.
        if (seconds >= 2 * size || (size == 1 && seconds >= 1))
            return fmt::format("{} {}{}", seconds / size, name, seconds / size == 1 ? "" : "s");
    return "less than a second";
}

std::string size_text(std::uint64_t bytes) {
    constexpr std::uint64_t mib = 1024 * 1024;
    if (bytes >= 1024 * mib)
        return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 1024 / mib);
    return fmt::format("{} MiB", (bytes + mib - 1) / mib);
}

std::string joined(const std::vector<std::string>& words) {
    return fmt::format("{}", fmt::join(words, ", "));
}

std::string age_of(const std::string& timestamp) {
    tm parts{};
    const char* end = ::strptime(timestamp.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    if (end == nullptr || *end != '\0') return {};
    return in_words(::time(nullptr) - ::timegm(&parts));
}

}  // namespace qvm
