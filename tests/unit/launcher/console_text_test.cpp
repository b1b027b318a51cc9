#include "launcher/console_text.h"

#include <catch2/catch.hpp>

using namespace qvm;

namespace {

LastLine after(std::string_view text) {
    LastLine lines;
    for (const char c : text) lines.feed({&c, 1});  // in the smallest pieces
    return lines;
}

}  // namespace

TEST_CASE("the last line, without escape sequences") {
    CHECK(after("one\r\ntwo\r\n").ended() == "two");
    CHECK(after("one\r\ntwo\r\n").open().empty());
    CHECK(after("one\ntw").open() == "tw");
    CHECK(after("one\n\n\n").ended() == "one");
    CHECK(after("\x1b[1;32mdemo#\x1b[0m \x1b[6n").open() == "demo# ");
    CHECK(after("\x1b]0;title\x07$ ").open() == "$ ");
    CHECK(after("\x1b"
                "c\x1b[?7l\x1b[2Jtext")
              .open() == "text");
    CHECK(after(std::string(5000, 'x')).open().size() == 1024);
}

TEST_CASE("prompts") {
    for (const char* line : {"demo# ", "user@host:~$ ", "debian login: ", "Password: ", "> ", "% "})
        CHECK((is_prompt(line) || std::string_view{line}.size() < 2));
    for (const char* line :
         {"", "#", "Booting from Hard Disk...", "[    0.1] x", "100% done", " "}) {
        INFO(line);
        CHECK(!is_prompt(line));
    }
}

TEST_CASE("a panic is its last line, and nothing that merely mentions it") {
    CHECK(is_panic_end("[    3.141592] ---[ end Kernel panic - not syncing: Fatal exception ]---"));
    CHECK(is_panic_end("---[ end Kernel panic - not syncing: VFS ]---"));
    CHECK(!is_panic_end("[    3.141592] Kernel panic - not syncing: Fatal exception"));
    CHECK(!is_panic_end("grep: ---[ end Kernel panic - not syncing"));
    CHECK(!is_panic_end("[    3.141592] "));
    CHECK(!is_panic_end("["));
    CHECK(!is_panic_end(""));
}

TEST_CASE("what a panic was about") {
    CHECK(panic_reason("[    3.1] Kernel panic - not syncing: sysrq triggered crash") ==
          "Kernel panic - not syncing: sysrq triggered crash");
    CHECK(!panic_reason("dmesg | grep Kernel panic - not syncing"));
    std::vector<std::string> ended;
    LastLine lines;
    lines.feed("one\r\n\r\ntwo\nthr", [&](auto line) { ended.emplace_back(line); });
    CHECK(ended == std::vector<std::string>{"one", "two"});
}

TEST_CASE("UEFI's words on the console, and the end of them") {
    CHECK(is_of_uefi(after("\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: starting Boot0002").open()));
    CHECK(is_of_uefi("UEFI firmware (version  built at 13:10:49 on Nov  5 2024)"));
    CHECK(is_of_uefi("Bds"));
    CHECK(!is_of_uefi("[    0.073113] Linux version"));
    CHECK(!is_of_uefi("GNU GRUB"));
    CHECK(is_booting("BdsDxe: starting Boot0002 \"UEFI Misc Device\" from PciRoot(0x0)"));
    CHECK(!is_booting("BdsDxe: loading Boot0002 \"UEFI Misc Device\" from PciRoot(0x0)"));
}

TEST_CASE("firmware that gives up") {
    CHECK(is_nothing_to_boot(after("Booting from Floppy...\nNo bootable device.").open()));
    CHECK(is_nothing_to_boot(after("No bootable device.  Retrying in 60 seconds.\n").ended()));
    CHECK(!is_nothing_to_boot(after("Booting from Hard Disk...\n").ended()));
    CHECK(is_nothing_to_boot("BdsDxe: No bootable option or device was found."));
    CHECK(is_nothing_to_boot("BdsDxe: loading Boot0001 \"EFI Internal Shell\" from Fv(7CB8BDC9)"));
    CHECK(!is_nothing_to_boot("BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from Pci"));
    CHECK(!is_nothing_to_boot("BdsDxe: loading Boot0002 \"UEFI Misc Device\" from Pci"));
}
