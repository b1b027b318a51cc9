#include "launcher/migration.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "launcher/memory_file.h"
#include "tests/unit/launcher/peer.h"

using namespace qvm;
using namespace std::chrono_literals;

namespace {

MachineFacts example() {
    return {.qemu = "7.2.22",
            .machine = "pc-q35-7.2",
            .cpu = {{{"cpuid", "1.0.ECX"}, {"features", 0x81}},
                    {{"cpuid", "7.0.EBX"}, {"features", 0xf}}}};
}

}  // namespace

TEST_CASE("a machine fits itself, and a newer QEMU that makes the same") {
    auto here = example();
    CHECK(misfit(example(), here).empty());
    here.qemu = "10.0.2";
    CHECK(misfit(example(), here).empty());
}

TEST_CASE("what does not fit is named") {
    auto here = example();
    here.qemu = "7.2.9";
    CHECK(misfit(example(), here) == "it needs QEMU 7.2.22, and this is 7.2.9");
    here = example();
    here.machine = "pc-q35-9.0";
    CHECK(misfit(example(), here) ==
          "its machine is pc-q35-7.2, and this QEMU has made pc-q35-9.0");
    here = example();
    here.cpu[1].as_object()["features"] = 0x1f;
    CHECK(misfit(example(), here) ==
          "its CPU had other features: CPUID 7.0.EBX was 0x0000000f, and is 0x0000001f");
    here.cpu.pop_back();
    CHECK(misfit(example(), here).starts_with("its CPU had other features: "));
}

TEST_CASE("a machine is saved when it can go on, not when that is announced") {
    namespace asio = boost::asio;
    asio::io_context context{1};
    const auto ends = socket_pair();
    Peer qemu{context, ends[1]};
    qmp::Client monitor{context.get_executor(), ends[0]};
    Migration migration{context.get_executor(), monitor};
    const auto status = [](const char* name) { return boost::json::object{{"status", name}}; };
    qemu.replies["query-status"] = {status("finish-migrate"), status("finish-migrate"),
                                    status("postmigrate")};
    qemu.events_before["migrate"] = {R"({"event": "MIGRATION", "data": {"status": "completed"}, )"
                                     R"("timestamp": {"seconds": 1, "microseconds": 1}})"};
    const auto events = [&]() -> asio::awaitable<void> {
        while (const auto event = co_await monitor.next_event()) migration.take_status(*event);
    };
    const MemoryFile state;
    const auto script = [&]() -> asio::awaitable<void> {
        qemu.say(qemu_greeting);
        co_await monitor.handshake(10s);
        co_await migration.save(state.fd(), true);
    };
    asio::co_spawn(context, qemu.play(), asio::detached);
    asio::co_spawn(context, events(), asio::detached);
    run(context, script);
    CHECK(qemu.given.size() == 1);
    CHECK(qemu.count("query-status") == 3);
}
