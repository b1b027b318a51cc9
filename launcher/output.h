#pragma once

#include <string>
#include <string_view>

namespace qvm {

/// Without what a terminal would take for a command: control characters, also those of UTF-8
/// (C1), are '?'; ends of lines stay. Pure.
std::string printable(std::string_view text);

/// A line for the user, on stderr, printable() whoever its words are of. Never fails: there is
/// nowhere to say so.
void say(std::string_view line) noexcept;

class Failure;

/// What fails, and the hint. The exit status.
int say_failure(const Failure& failure) noexcept;

/// What a command that threw says; to be called where that is caught. The exit status.
int say_failure() noexcept;

/// What was asked for, on stdout. Throws Failure when it cannot be written, and ends the process
/// where nobody reads any more.
void print(std::string_view text);

/// For who has more to do than to print: whether it was written, else errno says why not. And what
/// print() does then.
bool try_print(std::string_view text);
void cannot_print(int error);

/// Ends as any program does whose reader has seen enough: by SIGPIPE.
void end_without_reader();

/// Whether stdout may have colours: a terminal that is not dumb, and no NO_COLOR (no-color.org).
bool use_colour();

}  // namespace qvm
