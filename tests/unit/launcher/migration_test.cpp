#include "launcher/migration.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>

using namespace qvm;

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
