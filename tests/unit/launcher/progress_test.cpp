#include "launcher/progress.h"

#include <catch2/catch.hpp>

using namespace qvm;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t mib = 1024 * 1024;

}  // namespace

TEST_CASE("how far it is, in words") {
    CHECK(progress_text({.done = 45 * mib, .total = 100 * mib}) == "45 % of 100 MiB");
    CHECK(progress_text({.done = 45 * mib, .total = 100 * mib, .rate = 10 * mib}) ==
          "45 % of 100 MiB, 10.0 MiB/s, 6 s left");
    CHECK(progress_text({.done = 0, .total = 600 * mib, .rate = 4.0 * mib}) ==
          "0 % of 600 MiB, 4.0 MiB/s, 2:30 min left");
    CHECK(progress_text({.done = 100 * mib, .total = 100 * mib, .rate = mib}) ==
          "100 % of 100 MiB, 1.0 MiB/s");
    CHECK(progress_text({.done = 5 * mib, .rate = mib}) == "5 MiB, 1.0 MiB/s");
    CHECK(progress_text({.done = 0, .total = 0}) == "100 % of 0 MiB");
    CHECK(progress_text({.done = 2 * mib, .total = mib}) == "100 % of 1 MiB");
}

TEST_CASE("a bar fits its line") {
    const Progress half{.done = 50 * mib, .total = 100 * mib};
    CHECK(progress_bar("disk", half, 43) == "disk [=========>        ] 50 % of 100 MiB");
    for (unsigned columns = 0; columns < 200; ++columns) {
        const auto line = progress_bar("disk", half, columns);
        CHECK(line.size() < std::max(columns, 38U));
        CHECK(line.starts_with(std::string{"disk"}.substr(0, columns > 0 ? columns - 1 : 4)));
    }
    CHECK(progress_bar("disk", {.done = 5 * mib}, 80) == "disk  5 MiB");
    CHECK(progress_bar("\x1b]0;disk", {.done = 5 * mib}, 80) == "?]0;disk  5 MiB");
    CHECK(progress_bar("disk", {.done = mib, .total = mib}, 44).find("==]") != std::string::npos);
}

TEST_CASE("a rate follows what happens, and not every gust of it") {
    const std::chrono::steady_clock::time_point begin{1h};
    Rate rate;
    rate.begin(100, begin);
    CHECK(rate.update(300, begin) == 0);
    CHECK(rate.update(300, begin + 1s) == Approx(200));
    CHECK(rate.update(500, begin + 2s) == Approx(200));
    const auto slower = rate.update(500, begin + 3s);
    CHECK(slower < 200);
    CHECK(slower > 100);
    CHECK(rate.update(500, begin + 60s) < 1);
    // It has begun anew.
    CHECK(rate.update(100, begin + 61s) < 1);
}
