#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace qvm {

/// How far a transfer is.
struct Progress {
    std::uint64_t done = 0;                ///< bytes
    std::optional<std::uint64_t> total{};  ///< the same, where it is known
    double rate = 0;                       ///< bytes a second, of late; 0: not known yet
};

/// "45 % of 331 MiB, 12.3 MiB/s, 15 s left". Pure.
std::string progress_text(const Progress& progress);

/// The same as a bar, of at most so many columns: "debian:13 [=====>      ]  45 % of 331 MiB, ...".
/// Pure.
std::string progress_bar(const std::string& what, const Progress& progress, unsigned columns);

/// Bytes a second, of which the last few seconds count most.
class Rate {
  public:
    /// `done` bytes by now, in all. Returns the rate.
    double update(std::uint64_t done, std::chrono::steady_clock::time_point now);
    /// From so many bytes on.
    void begin(std::uint64_t done, std::chrono::steady_clock::time_point now);

  private:
    std::uint64_t done_ = 0;
    std::chrono::steady_clock::time_point at_{};
    double rate_ = 0;
};

/// Shows a transfer on stderr: on a terminal as a bar, else as a line for every tenth of it.
class ProgressMeter {
  public:
    enum class On { nothing, terminal, anything };
    ProgressMeter(std::string what, On on);
    ProgressMeter(const ProgressMeter&) = delete;
    ProgressMeter& operator=(const ProgressMeter&) = delete;
    /// Takes the bar away.
    ~ProgressMeter();

    /// What is there when it begins, or begins anew.
    void begin(std::uint64_t done, std::optional<std::uint64_t> total);
    void update(std::uint64_t done);
    /// Takes the bar away until the next update: something else is to be said.
    void clear();

  private:
    void draw();
    void say_tenth();

    std::string what_;
    bool draws_;
    bool says_;
    bool drawn_ = false;
    Progress progress_;
    Rate rate_;
    std::chrono::steady_clock::time_point next_{};
    std::uint64_t said_ = 0;  ///< tenths
};

}  // namespace qvm
