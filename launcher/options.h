#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "launcher/values.h"

namespace qvm {

enum class Accel { automatic, kvm, tcg };

/// qvm run
struct RunOptions {
    std::optional<std::filesystem::path> image;  ///< may be missing with a kernel
    std::optional<std::string> name;
    std::uint64_t memory_mib = 1024;
    unsigned cpus = 1;
    NetOption net;
    std::optional<std::filesystem::path> kernel;
    std::optional<std::filesystem::path> initrd;
    std::optional<std::string> append;
    bool persist = false;
    bool trust_backing = false;
    Accel accel = Accel::automatic;
    std::vector<std::string> qemu_args;
    bool dry_run = false;
    bool timings = false;
    std::optional<std::filesystem::path> timings_file;
    std::optional<std::chrono::milliseconds> timeout;
    bool quiet = false;
    bool debug = false;
};

/// qvm image demo [PATH]
struct ImageDemoOptions {
    std::filesystem::path path;
    bool quiet = false;
};

/// Nothing to do but to print `text` on stdout: help, version.
struct PrintText {
    std::string text;
};

using Command = std::variant<RunOptions, ImageDemoOptions, PrintText>;

/// The command line as a value. Pure. Throws Failure.
Command parse_command_line(int argc, const char* const* argv);

}  // namespace qvm
