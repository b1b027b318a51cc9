#include "launcher/console_text.h"

#include <algorithm>

namespace qvm {

namespace {

// A line longer than this is cut: it is looked at, not kept.
constexpr std::size_t longest_line = 1024;

bool is_final_byte(char c) {
    return c >= 0x40 && c <= 0x7e;
}

}  // namespace

void LastLine::feed(std::string_view bytes) {
    for (const char c : bytes) take(c);
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

bool is_panic_end(std::string_view line) {
    constexpr std::string_view mark = "---[ end Kernel panic - not syncing";
    // "[    1.234567] " may stand before it, and nothing else.
    if (line.starts_with('[')) {
        const auto stamp = line.find("] ");
        if (stamp == std::string_view::npos) return false;
        line.remove_prefix(stamp + 2);
    }
    return line.starts_with(mark);
}

bool is_nothing_to_boot(std::string_view line) {
    return line.starts_with("No bootable device");
}

}  // namespace qvm
