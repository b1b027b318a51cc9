// Catch2's own code, which takes long to compile, once for all test programs.
#define CATCH_CONFIG_RUNNER
#include "tests/catch.h"

#include <catch2/catch.hpp>

int run_tests(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}
