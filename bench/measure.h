#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

/// Series of measurements in milliseconds, and their table: medians, and ratios to the first.
namespace bench {

using Clock = std::chrono::steady_clock;

inline double since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

template <typename Work>
double time_of(Work work) {
    const auto start = Clock::now();
    work();
    return since(start);
}

class Table {
  public:
    void add(const std::string& name, double ms) {
        if (values_.find(name) == values_.end()) order_.push_back(name);
        values_[name].push_back(ms);
    }
    void print(const char* title) const { print(title, "p90", 0.9, 1); }
    /// In microseconds, with p99 in place of p90: for what happens many times a round.
    void print_latency(const char* title) const { print(title, "p99", 0.99, 1000); }

  private:
    void print(const char* title, const char* tail, double tail_quantile, double scale) const {
        std::printf("%-44s %9s %9s %9s %7s\n", title, "median", "p10", tail, "ratio");
        const double first = quantile(order_.front(), 0.5);
        for (const auto& name : order_)
            std::printf("%-44s %9.2f %9.2f %9.2f %6.1fx\n", name.c_str(),
                        scale * quantile(name, 0.5), scale * quantile(name, 0.1),
                        scale * quantile(name, tail_quantile), quantile(name, 0.5) / first);
        std::printf("\n");
    }
    double quantile(const std::string& name, double q) const {
        auto sorted = values_.at(name);
        std::sort(sorted.begin(), sorted.end());
        return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
    }
    std::vector<std::string> order_;
    std::map<std::string, std::vector<double>> values_;
};

}  // namespace bench
