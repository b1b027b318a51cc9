#include "launcher/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "launcher/output.h"
#include "launcher/table.h"

namespace qvm {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;
using namespace std::chrono_literals;

namespace {

constexpr auto first_pause = 500ms;  // what is shorter needs no bar
constexpr auto pause = 200ms;        // between two bars
constexpr double memory = 3;         // seconds that a rate remembers
constexpr double mib = 1024 * 1024;
constexpr std::uint64_t step_of_unknown = 64 * 1024 * 1024;  // in place of a tenth

std::string time_text(double seconds) {
    const auto whole = static_cast<std::uint64_t>(std::ceil(seconds));
    if (whole < 60) return fmt::format("{} s", whole);
    return fmt::format("{}:{:02} min", whole / 60, whole % 60);
}

std::uint64_t percent_of(const Progress& progress) {
    return *progress.total == 0
               ? 100
               : std::min<std::uint64_t>(progress.done * 100 / *progress.total, 100);
}

unsigned columns_of_terminal() {
    constexpr unsigned usual = 80;
    winsize size{};
    return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : usual;
}

}  // namespace

std::string progress_text(const Progress& progress) {
    auto text = progress.total
                    ? fmt::format("{} % of {}", percent_of(progress), size_text(*progress.total))
                    : size_text(progress.done);
    if (progress.rate <= 0) return text;
    text += fmt::format(", {:.1f} MiB/s", progress.rate / mib);
    if (progress.total && *progress.total > progress.done)
        text += fmt::format(
            ", {} left",
            time_text(static_cast<double>(*progress.total - progress.done) / progress.rate));
    return text;
}

std::string progress_bar(const std::string& what, const Progress& progress, unsigned columns) {
    constexpr std::size_t least = 8, most = 40;
    const auto text = progress_text(progress);
    const auto title = printable(what);
    auto line = title + "  " + text;
    if (progress.total && columns > line.size() + 4 + least) {
        const auto width = std::min<std::size_t>(columns - line.size() - 4, most);
        const auto full = percent_of(progress) * width / 100;
        std::string bar(full, '=');
        if (full < width) bar += '>';
        bar.resize(width, ' ');
        line = fmt::format("{} [{}] {}", title, bar, text);
    }
    if (columns > 0) line.resize(std::min<std::size_t>(line.size(), columns - 1));
    return line;
}

double Rate::update(std::uint64_t done, Clock::time_point now) {
    const double seconds = Seconds{now - at_}.count();
    if (seconds <= 0) return rate_;
    const double latest = static_cast<double>(done - std::min(done, done_)) / seconds;
    // The first measure stands for all before.
    const double weight = rate_ == 0 ? 1 : 1 - std::exp(-seconds / memory);
    rate_ += weight * (latest - rate_);
    done_ = done;
    at_ = now;
    return rate_;
}

void Rate::begin(std::uint64_t done, Clock::time_point now) {
    done_ = done;
    at_ = now;
    rate_ = 0;
}

ProgressMeter::ProgressMeter(std::string what, On on)
    : what_(std::move(what)),
      draws_(on != On::nothing && ::isatty(STDERR_FILENO) == 1),
      says_(on == On::anything && !draws_) {}

ProgressMeter::~ProgressMeter() {
    clear();
}

void ProgressMeter::begin(std::uint64_t done, std::optional<std::uint64_t> total) {
    const auto now = Clock::now();
    progress_ = {.done = done, .total = total};
    rate_.begin(done, now);
    next_ = now + first_pause;
    said_ = total ? percent_of(progress_) / 10 : 0;
}

void ProgressMeter::update(std::uint64_t done) {
    progress_.done = done;
    const auto now = Clock::now();
    const bool due = now >= next_;
    if (due) {
        progress_.rate = rate_.update(done, now);
        next_ = now + pause;
    }
    if (draws_ && due) draw();
    if (says_) say_tenth();
}

void ProgressMeter::clear() {
    if (std::exchange(drawn_, false)) std::fputs("\r\033[K", stderr);
}

void ProgressMeter::draw() {
    const auto line = progress_bar(what_, progress_, columns_of_terminal());
    std::fprintf(stderr, "\r%s\033[K", line.c_str());
    std::fflush(stderr);
    drawn_ = true;
}

void ProgressMeter::say_tenth() {
    const auto steps =
        progress_.total ? percent_of(progress_) / 10 : progress_.done / step_of_unknown;
    if (steps == said_) return;
    said_ = steps;
    say(fmt::format("qvm: {}: {}", what_, progress_text(progress_)));
}

}  // namespace qvm
