#pragma once

#include <boost/json/array.hpp>
#include <chrono>
#include <string>
#include <vector>

namespace qvm {

using Clock = std::chrono::steady_clock;

/// What the phases of a run took; see qvm(1), --timings. Phases may overlap.
class Timings {
  public:
    /// `exec` is when the process image was started; times count from there.
    explicit Timings(Clock::time_point exec) : exec_(exec) {}

    /// Records a phase.
    void add(std::string name, Clock::time_point start, Clock::time_point end);
    /// Runs `work` as the phase `name` and returns what it returns.
    template <typename Work>
    auto measure(std::string name, Work work) {
        const Scope scope{*this, std::move(name)};
        return work();
    }

    [[nodiscard]] Clock::time_point exec() const noexcept { return exec_; }

    /// One line a phase, in ms.
    [[nodiscard]] std::string to_text() const;
    /// [{"name": ..., "start_ms": ..., "ms": ...}, ...]
    [[nodiscard]] boost::json::array phases() const;
    /// {"phases": [...]}
    [[nodiscard]] std::string to_json() const;

  private:
    struct Scope {
        Scope(Timings& owner, std::string phase)
            : timings(owner), name(std::move(phase)), start(Clock::now()) {}
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;
        ~Scope() { timings.add(std::move(name), start, Clock::now()); }
        Timings& timings;
        std::string name;
        Clock::time_point start;
    };
    struct Phase {
        std::string name;
        double start_ms;
        double ms;
    };

    Clock::time_point exec_;
    std::vector<Phase> phases_;
};

/// When this process was started, as near as can be told from inside: what it computed before
/// main() (dynamic linking, mostly) is taken off the clock. Call first in main().
Clock::time_point time_of_exec();

}  // namespace qvm
