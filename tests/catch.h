#pragma once

/// Runs the tests that are linked in, as Catch2's command line says; the exit status.
int run_tests(int argc, char** argv);
