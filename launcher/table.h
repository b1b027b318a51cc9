#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace qvm {

/// Rows of cells in columns that line up, a line each; the first row is the header. Trailing blanks
/// are left out, and cells are printable(). Widths are those of UTF-8 text of one column a code
/// point. With `colour` the header is bold. Pure.
std::string to_table(std::vector<std::vector<std::string>> rows, bool colour = false);

/// A span in words: "3 seconds", "5 minutes", "2 hours", "4 days". Pure.
std::string in_words(std::int64_t seconds);

/// "120 MiB", "1.5 GiB". Pure.
std::string size_text(std::uint64_t bytes);

/// "a, b". Pure.
std::string joined(const std::vector<std::string>& words);

/// How long ago an RFC 3339 time in UTC was, in words; empty for what is not one.
std::string age_of(const std::string& timestamp);

}  // namespace qvm
