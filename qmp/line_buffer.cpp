#include "qmp/line_buffer.h"

namespace qvm::qmp {

void LineBuffer::append(std::string_view bytes) {
    buffer_.erase(0, begin_);
    scanned_ -= begin_;
    begin_ = 0;
    buffer_.append(bytes);
}

std::optional<std::string_view> LineBuffer::next() {
    const auto newline = buffer_.find('\n', scanned_);
    const bool found = newline != std::string::npos;
    scanned_ = found ? newline : buffer_.size();
    too_long_ = scanned_ - begin_ > max_line_;
    if (!found || too_long_) return std::nullopt;

    const auto line = std::string_view(buffer_).substr(begin_, newline - begin_);
    begin_ = scanned_ = newline + 1;
    return line;
}

}  // namespace qvm::qmp
