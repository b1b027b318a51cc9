#include "images/url.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace qvm::images {

namespace {

char lower(char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

/// Blanks and control characters are none of a URL's.
bool is_out_of_place(unsigned char c) {
    return c <= ' ' || c == 0x7f;
}

/// What two hexadecimal digits stand for, where that can be part of a file's name.
std::optional<char> escaped_byte(std::string_view digits) {
    unsigned char byte = 0;
    const auto* end = digits.data() + std::min(digits.size(), std::size_t{2});
    const auto read = std::from_chars(digits.data(), end, byte, 16);
    if (digits.size() < 2 || read.ptr != end || byte < ' ' || byte == 0x7f || byte == '/')
        return std::nullopt;
    return static_cast<char>(byte);
}

}  // namespace

bool has_scheme(std::string_view url, std::string_view scheme) {
    return url.size() > scheme.size() && url[scheme.size()] == ':' &&
           std::equal(scheme.begin(), scheme.end(), url.begin(),
                      [](char a, char b) { return a == lower(b); });
}

bool is_url(std::string_view text) {
    if (std::any_of(text.begin(), text.end(), is_out_of_place)) return false;
    const auto rest = text.substr(std::min(text.find(':'), text.size()));
    return ((has_scheme(text, "http") || has_scheme(text, "https")) && rest.starts_with("://")) ||
           (has_scheme(text, "file") && rest.starts_with(":///"));
}

std::string without_secrets(std::string_view url) {
    const auto query = std::min(url.find_first_of("?#"), url.size());
    std::string shown{url.substr(0, query)};
    const auto slashes = shown.find("://");
    if (slashes != std::string::npos) {
        const auto host = slashes + 3;
        const auto at = shown.substr(0, shown.find('/', host)).rfind('@');
        if (at != std::string::npos && at >= host) shown.erase(host, at + 1 - host);
    }
    return query < url.size() ? shown + url[query] + "..." : shown;
}

std::string file_name_of(std::string_view url) {
    url = url.substr(0, url.find_first_of("?#"));
    url.remove_prefix(url.rfind('/') + 1);  // npos + 1 is 0
    std::string name;
    while (!url.empty()) {
        const auto byte = url.front() == '%' ? escaped_byte(url.substr(1)) : std::nullopt;
        name += byte.value_or(url.front());
        url.remove_prefix(byte ? 3 : 1);
    }
    return name;
}

}  // namespace qvm::images
