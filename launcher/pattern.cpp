#include "launcher/pattern.h"

#include <array>

#include "launcher/failure.h"

namespace qvm {

Pattern::Pattern(const std::string& text)
    : compiled_(nullptr, [](regex_t* compiled) {
          ::regfree(compiled);
          delete compiled;
      }) {
    constexpr std::size_t longest = 1000;
    if (text.size() > longest) throw Failure("is too long for a regular expression");
    auto compiled = std::make_unique<regex_t>();
    const int error = ::regcomp(compiled.get(), text.c_str(), REG_EXTENDED | REG_NOSUB);
    if (error != 0) {
        std::array<char, 256> reason{};
        ::regerror(error, compiled.get(), reason.data(), reason.size());
        throw Failure(std::string{"is no regular expression: "} + reason.data());
    }
    compiled_.reset(compiled.release());
}

bool Pattern::matches(const std::string& line) const {
    return ::regexec(compiled_.get(), line.c_str(), 0, nullptr, 0) == 0;
}

}  // namespace qvm
