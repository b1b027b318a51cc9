#pragma once

#include <regex.h>

#include <memory>
#include <string>

namespace qvm {

/// An extended regular expression, as egrep has it (POSIX; regcomp(3)).
class Pattern {
  public:
    /// At most 1000 bytes, since regcomp(3) recurses. Throws Failure with the reason alone.
    explicit Pattern(const std::string& text);
    /// Whether some part of the line fits.
    [[nodiscard]] bool matches(const std::string& line) const;

  private:
    std::unique_ptr<regex_t, void (*)(regex_t*)> compiled_;
};

}  // namespace qvm
