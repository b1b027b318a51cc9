#include "launcher/console_text.h"

#include <algorithm>

namespace qvm {

namespace {

// A line longer than this is cut: it is looked at, not kept.
constexpr std::size_t longest_line = 1024;

bool is_final_byte(char c) {
    return c >= 0x40 && c <= 0x7e;
}

/// A kernel's line without the "[    1.234567] " that may stand before it.
std::string_view without_time(std::string_view line) {
    if (!line.starts_with('[')) return line;
    const auto end = line.find("] ");
    return end == std::string_view::npos ? line : line.substr(end + 2);
}

}  // namespace

void LastLine::feed(std::string_view bytes, const std::function<void(std::string_view)>& ended) {
    for (const char c : bytes) {
        const bool ends = state_ == State::text && c == '\n' && !open_.empty();
        take(c);
        if (ends && ended) ended(ended_);
    }
}

void LastLine::take(char c) {
    constexpr char escape = 0x1b, bell = 0x07;
    switch (state_) {
        case State::text:
            if (c == escape)
                state_ = State::escape;
            else
                take_text(c);
            return;
        case State::escape:
            if (c == '[')
                state_ = State::sequence;
            else if (c == ']')
                state_ = State::string;
            else
                state_ = State::text;
            return;
        case State::sequence:
            if (is_final_byte(c)) state_ = State::text;
            return;
        case State::string:
            if (c == bell) state_ = State::text;
            if (c == escape) state_ = State::escape;
            return;
    }
}

void LastLine::take_text(char c) {
    if (c == '\n') {
        if (!open_.empty()) ended_ = std::move(open_);
        open_.clear();
        return;
    }
    const bool printable = static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
    if (printable && open_.size() < longest_line) open_ += c;
}

bool is_prompt(std::string_view line) {
    if (line.size() < 2 || line.back() != ' ') return false;
    constexpr std::string_view ends = "#$>%:?";
    return ends.find(line[line.size() - 2]) != std::string_view::npos;
}

std::optional<std::string> panic_reason(std::string_view line) {
    line = without_time(line);
    if (!line.starts_with("Kernel panic - not syncing")) return std::nullopt;
    return std::string{line};
}

bool is_panic_end(std::string_view line) {
    return without_time(line).starts_with("---[ end Kernel panic - not syncing");
}

bool is_booting(std::string_view line) {
    return line.starts_with("Booting from ") || line.starts_with("BdsDxe: starting ");
}

bool is_nothing_to_boot(std::string_view line) {
    return line.starts_with("No bootable device") ||
           line.starts_with("BdsDxe: No bootable option") ||
           (line.starts_with("BdsDxe: loading ") &&
            line.find("\"EFI Internal Shell\"") != std::string_view::npos);
}

bool is_of_uefi(std::string_view line) {
    const auto may_be = [line](std::string_view words) {
        return line.substr(0, words.size()) == words.substr(0, line.size());
    };
    return may_be("BdsDxe: ") || may_be("UEFI firmware ");
}

}  // namespace qvm
