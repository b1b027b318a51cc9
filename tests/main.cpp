// Of the test programs that have no main() of their own.
#include "tests/catch.h"

int main(int argc, char** argv) {
    return run_tests(argc, argv);
}
