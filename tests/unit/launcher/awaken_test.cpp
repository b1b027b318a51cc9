#include "launcher/awaken.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "launcher/process.h"

using namespace qvm;
using namespace std::chrono_literals;

namespace {

const Awakening example{.name = "web-2",
                        .now = std::chrono::system_clock::time_point{1'800'000'000s + 250ms},
                        .random = "00112233445566778899aabbccddeeff",
                        .boot_id = "6b9f3a70-0000-4000-8000-000000000000"};

}  // namespace

TEST_CASE("a guest learns its name, the time, its boot ID, and something to be random by") {
    const auto script = awaken_script(example);
    for (const char* part : {"echo web-2 >/proc/sys/kernel/hostname", "date -u -s @1800000000.250",
                             "date -u -s @1800000000\n", "6b9f3a70-0000-4000-8000-000000000000",
                             "QVM_RANDOM=00112233445566778899aabbccddeeff perl"})
        CHECK(script.find(part) != std::string::npos);
}

TEST_CASE("a shell understands it") {
    CHECK(run_tool({"sh", "-n"}, awaken_script(example)).err.empty());
}

TEST_CASE("the hook has the last word, and its own exit status") {
    const auto arguments = awaken_arguments(example, "echo $QVM_NAME; exit 3");
    CHECK(arguments.at("capture-output") == true);
    auto words = boost::json::value_to<std::vector<std::string>>(arguments.at("arg"));
    // Without what it does to this machine.
    const auto hook = words.at(1).find("[ -z");
    REQUIRE(hook != std::string::npos);
    words.at(1).erase(0, hook);
    words.insert(words.begin(), "sh");
    const auto done = run_tool(words);
    CHECK(done.out == "web-2\n");
    CHECK(done.status.code == 3);
    words.back() = "";
    CHECK(run_tool(words).status.code == 0);
}
