#pragma once

#include <string_view>

namespace qvm {

/// A line for the user, on stderr. Never fails: there is nowhere to say so.
void say(std::string_view line) noexcept;

/// What was asked for, on stdout. Throws Failure when it cannot be written.
void print(std::string_view text);

/// Ends as any program does whose reader has seen enough: by SIGPIPE.
void end_without_reader();

/// Whether stdout may have colours: a terminal that is not dumb, and no NO_COLOR (no-color.org).
bool use_colour();

}  // namespace qvm
