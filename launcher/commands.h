#pragma once

#include "launcher/options.h"
#include "launcher/timings.h"

/// The commands: each returns qvm's exit status, prints what was asked for on stdout and notes on
/// stderr, and throws std::exception for what fails (Failure with a hint, where there is one).
namespace qvm {

int run(const RunOptions& options, Timings& timings);
int image_demo(const ImageDemoOptions& options);

}  // namespace qvm
