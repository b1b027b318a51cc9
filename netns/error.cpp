#include "netns/error.h"

#include <fmt/format.h>

#include <system_error>

namespace qvm::netns {

namespace {

std::string describe(std::string_view step, int error, std::string_view kernel_text) {
    auto text = fmt::format("{}: {}", step, std::generic_category().message(error));
    if (!kernel_text.empty()) text += fmt::format(" (kernel: {})", kernel_text);
    return text;
}

}  // namespace

Error::Error(std::string_view step, int error, std::string_view kernel_text)
    : std::runtime_error(describe(step, error, kernel_text)), error_(error) {}

Error::Error(std::string_view step, std::string_view reason)
    : std::runtime_error(fmt::format("{}: {}", step, reason)), error_(0) {}

int check(int result, std::string_view step) {
    if (result < 0) throw Error(step, errno);
    return result;
}

}  // namespace qvm::netns
