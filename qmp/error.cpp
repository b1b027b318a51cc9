#include "qmp/error.h"

#include <utility>

namespace qvm::qmp {
namespace {

const char* text(Errc code) {
    switch (code) {
        case Errc::bad_json:
            return "the peer sent a line that is not JSON";
        case Errc::bad_message:
            return "the peer sent JSON that is not a QMP message";
        case Errc::line_too_long:
            return "the peer sent a line that is too long";
        case Errc::unexpected_message:
            return "the peer sent a message out of turn";
        case Errc::handshake_refused:
            return "the peer refused qmp_capabilities";
        case Errc::not_ready:
            return "the connection is not negotiated yet";
        case Errc::not_encodable:
            return "the command cannot be written as JSON";
        case Errc::timed_out:
            return "no answer in time";
        case Errc::disconnected:
            return "the peer closed the connection";
        case Errc::closed:
            return "the connection was closed on this side";
    }
    return "unknown error";
}

struct Category : std::error_category {
    const char* name() const noexcept override { return "qmp"; }
    std::string message(int code) const override { return text(static_cast<Errc>(code)); }
};

}  // namespace

const std::error_category& error_category() noexcept {
    static const Category category;
    return category;
}

std::error_code make_error_code(Errc code) noexcept {
    return {static_cast<int>(code), error_category()};
}

CommandError::CommandError(std::string command_, std::string error_class_, std::string desc_)
    : std::runtime_error(command_ + ": " + desc_),
      command(std::move(command_)),
      error_class(std::move(error_class_)),
      desc(std::move(desc_)) {}

}  // namespace qvm::qmp
