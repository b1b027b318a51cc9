#include "launcher/timings.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>

using namespace qvm;
using namespace std::chrono_literals;

TEST_CASE("phases count from exec, in milliseconds") {
    const Clock::time_point exec{};
    Timings timings{exec};
    timings.add("namespace", exec + 800us, exec + 1500us);
    timings.add("total", exec, exec + 2s);
    CHECK(timings.to_text() == "namespace          0.70\ntotal           2000.00\n");
    const auto json = boost::json::parse(timings.to_json());
    const auto& first = json.at("phases").at(0);
    CHECK(first.at("name") == "namespace");
    CHECK(first.at("start_ms").to_number<double>() == Approx(0.8));
    CHECK(first.at("ms").to_number<double>() == Approx(0.7));
    CHECK(json.at("phases").as_array().size() == 2);
}

TEST_CASE("a phase is recorded also when it fails") {
    Timings timings{Clock::now()};
    CHECK_THROWS(timings.measure("network", []() -> int { throw std::runtime_error("no"); }));
    CHECK(timings.measure("overlay", [] { return 7; }) == 7);
    const auto json = boost::json::parse(timings.to_json());
    CHECK(json.at("phases").as_array().size() == 2);
}

TEST_CASE("exec was before now") {
    CHECK(time_of_exec() <= Clock::now());
}
