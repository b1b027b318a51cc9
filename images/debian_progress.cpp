#include <algorithm>
#include <charconv>
#include <cstring>
#include <sstream>

#include "images/debian_steps.h"

namespace qvm::images {
namespace {

constexpr std::string_view error_mark = "E: ";
constexpr std::string_view note_mark = "I: ";

// The number that a text begins with; 0 if there is none.
unsigned number_at(std::string_view text) {
    unsigned number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number);
    return number;
}

bool is_older(std::string one, std::string other) {
    // What is behind a tilde comes before what has none (deb-version(7)).
    for (auto* version : {&one, &other}) std::ranges::replace(*version, '~', '\1');
    return strverscmp(one.c_str(), other.c_str()) < 0;
}

}  // namespace

void DebianProgress::feed(std::string_view piece) {
    rest_ += piece;
    for (std::size_t end; (end = rest_.find_first_of("\r\n")) != rest_.npos;) {
        read_line(rest_.substr(0, end));
        rest_.erase(0, end + 1);
    }
}

void DebianProgress::read_line(std::string_view line) {
    if (line.starts_with(note_mark)) {
        line.remove_prefix(note_mark.size());
        if (line.starts_with("running apt-get update")) report_("reading the package lists");
        if (line.starts_with("extracting archives")) report_("extracting the essential packages");
        if (line.starts_with("installing remaining packages")) which_ = "packages";
        return;
    }
    // apt: "0 upgraded, 210 newly installed, 0 to remove and 0 not upgraded."
    if (const auto at = line.find(" newly installed"); at != line.npos) {
        const auto number = line.rfind(' ', at - 1) + 1;
        packages_ = number_at(line.substr(number));
        downloaded_ = installed_ = 0;
    } else if (line.starts_with("Get:")) {
        count("downloading ", ++downloaded_, packages_);
    } else if (line.starts_with("Unpacking ") || line.starts_with("Setting up ")) {
        count("installing ", ++installed_, 2 * packages_);
    }
}

void DebianProgress::count(std::string_view what, unsigned done, unsigned of) {
    if (of == 0 || done > of) return;
    // A line for each tenth.
    auto text = std::string(what) + which_ + ": " + std::to_string(done * 10 / of * 10) + " %";
    if (text == reported_) return;
    report_(text);
    reported_ = std::move(text);
}

std::string debian_error(std::string_view standard_error) {
    std::istringstream lines{std::string(standard_error)};
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with(error_mark)) return line.substr(error_mark.size());
    }
    return {};
}

std::optional<std::string> source_of_suite(std::string_view targets, const std::string& suite) {
    std::istringstream lines{std::string(targets)};
    for (std::string uri, release, component; lines >> uri >> release >> component;) {
        // "bookworm-security" and the like are not whole by themselves.
        if (component == "main" && release.find('-') == release.npos) {
            return "deb " + uri + " " + suite + " main";
        }
    }
    return std::nullopt;
}

std::optional<std::string> newest_kernel(const std::set<std::string>& names) {
    constexpr std::string_view prefix = "vmlinuz-";
    std::optional<std::string> newest;
    for (const auto& name : names) {
        if (!name.starts_with(prefix)) continue;
        const auto version = name.substr(prefix.size());
        if (!names.contains("initrd.img-" + version)) continue;
        if (!newest || is_older(*newest, version)) newest = version;
    }
    return newest;
}

}  // namespace qvm::images
