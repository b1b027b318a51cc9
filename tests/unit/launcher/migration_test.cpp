#include "launcher/migration.h"

#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <functional>

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

namespace {

/// A monitor that answers, and does nothing.
struct Machine {
    void save() {
        const auto events = [&]() -> boost::asio::awaitable<void> {
            while (const auto event = co_await monitor.next_event()) migration.take_status(*event);
        };
        const auto script = [&]() -> boost::asio::awaitable<void> {
            qemu.say(qemu_greeting);
            co_await monitor.handshake(10s);
            co_await migration.save(state.fd(), true);
        };
        boost::asio::co_spawn(context, qemu.play(), boost::asio::detached);
        boost::asio::co_spawn(context, events(), boost::asio::detached);
        run(context, script);
    }

    boost::asio::io_context context{1};
    std::array<int, 2> ends = socket_pair();
    Peer qemu{context, ends[1]};
    qmp::Client monitor{context.get_executor(), ends[0]};
    Migration migration{context.get_executor(), monitor, 20ms};
    const MemoryFile state;
};

constexpr const char* completed = R"({"event": "MIGRATION", "data": {"status": "completed"}, )"
                                  R"("timestamp": {"seconds": 1, "microseconds": 1}})";

}  // namespace

TEST_CASE("a machine is saved when it can go on, not when that is announced") {
    Machine machine;
    const auto status = [](const char* name) { return boost::json::object{{"status", name}}; };
    machine.qemu.replies["query-status"] = {status("finish-migrate"), status("finish-migrate"),
                                            status("postmigrate")};
    machine.qemu.events_before["migrate"] = {completed};
    machine.save();
    CHECK(machine.qemu.given.size() == 1);
    CHECK(machine.qemu.count("query-status") == 3);
}

TEST_CASE("a migration has all the time that it needs, while it gets on") {
    Machine machine;
    boost::asio::steady_timer disk{machine.context};
    int writes = 0;
    std::function<void()> write = [&] {
        disk.expires_after(5ms);
        disk.async_wait([&](const auto&) {
            if (++writes == 40) return machine.qemu.say(completed);
            (void)!::write(machine.state.fd(), "x", 1);
            write();
        });
    };
    write();
    machine.save();
    CHECK(writes == 40);
    CHECK(machine.qemu.count("migrate_cancel") == 0);
}

TEST_CASE("a migration that gets no further is called off") {
    Machine machine;
    CHECK_THROWS_WITH(machine.save(), "QEMU's migrate gets no further");
    CHECK(machine.qemu.count("migrate_cancel") == 1);
}
