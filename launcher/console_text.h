#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

/// What a serial console says, read as it comes in pieces. Pure.
namespace qvm {

/// Keeps the last line of a text, without escape sequences (ECMA-48) and other control characters.
class LastLine {
  public:
    /// `ended` is told every line that ends, empty ones left out.
    void feed(std::string_view bytes, const std::function<void(std::string_view)>& ended = {});
    /// The line that is not ended yet.
    [[nodiscard]] const std::string& open() const noexcept { return open_; }
    /// The last line that was ended and not empty.
    [[nodiscard]] const std::string& ended() const noexcept { return ended_; }

  private:
    enum class State { text, escape, sequence, string };
    void take(char c);
    void take_text(char c);

    State state_ = State::text;
    std::string open_;
    std::string ended_;
};

/// Whether an unfinished line looks like somebody waiting for input: a shell's or a login prompt.
bool is_prompt(std::string_view line);

/// What a Linux kernel says first when it panics ("Kernel panic - not syncing: ..."), without the
/// time before it; nothing for other lines.
std::optional<std::string> panic_reason(std::string_view line);

/// Whether a line is the last that a Linux kernel prints when it panics and stays so
/// (kernel/panic.c, "---[ end Kernel panic - not syncing").
bool is_panic_end(std::string_view line);

/// Whether SeaBIOS or UEFI (EDK II) says with this line that it hands over to a boot loader or a
/// kernel.
bool is_booting(std::string_view line);

/// Whether one of them says with this line that it gives up (src/boot.c of SeaBIOS; BdsEntry.c of
/// EDK II), or, as UEFI does where it has one, falls back to a shell of its own.
bool is_nothing_to_boot(std::string_view line);

/// Whether it may be UEFI that prints this line, as far as that has come, and not what it has
/// booted.
bool is_of_uefi(std::string_view line);

}  // namespace qvm
