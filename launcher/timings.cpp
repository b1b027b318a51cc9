#include "launcher/timings.h"

#include <fmt/format.h>
#include <time.h>

#include <boost/json.hpp>
#include <cmath>

namespace qvm {

namespace {

double milliseconds(Clock::duration duration) {
    return std::chrono::duration<double, std::milli>(duration).count();
}

double rounded(double ms) {
    return std::round(ms * 1000) / 1000;
}

}  // namespace

void Timings::add(std::string name, Clock::time_point start, Clock::time_point end) {
    phases_.push_back({std::move(name), milliseconds(start - exec_), milliseconds(end - start)});
}

std::string Timings::to_text() const {
    std::string text;
    for (const auto& phase : phases_)
        text += fmt::format("{:<12} {:>10.2f}\n", phase.name, phase.ms);
    return text;
}

boost::json::array Timings::phases() const {
    boost::json::array phases;
    for (const auto& phase : phases_)
        phases.push_back({{"name", phase.name},
                          {"start_ms", rounded(phase.start_ms)},
                          {"ms", rounded(phase.ms)}});
    return phases;
}

std::string Timings::to_json() const {
    return boost::json::serialize(boost::json::object{{"phases", phases()}}) + "\n";
}

Clock::time_point time_of_exec() {
    timespec used{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return Clock::now() - std::chrono::seconds{used.tv_sec} -
           std::chrono::nanoseconds{used.tv_nsec};
}

}  // namespace qvm
