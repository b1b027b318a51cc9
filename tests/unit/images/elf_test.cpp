#include "images/elf.h"

#include <catch2/catch.hpp>

#include "images/error.h"
#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

TEST_CASE("a program names the libraries that it needs") {
    const auto program = read_file("/proc/self/exe");
    CHECK_THAT(needed_libraries(program), Catch::VectorContains(std::string("libc.so.6")));
    CHECK(module_info(program, "depends").empty());
    CHECK(needed_libraries("#!/bin/sh\n").empty());
    CHECK(needed_libraries("").empty());
}

TEST_CASE("a damaged program is an error or names nothing, but never a crash") {
    const auto program = read_file("/bin/true");
    for (std::size_t size = 0; size < program.size(); size += 97) {
        try {
            needed_libraries(program.substr(0, size));
        } catch (const Error&) {
        }
    }
}
