#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace qvm::images {

/// A program to run: argv[0] is looked up in PATH; `directory` is its working directory (empty:
/// the caller's own); `input` is all of its standard input; `listener` is told what it writes on
/// its standard error, in pieces, while it runs.
struct Command {
    std::vector<std::string> argv;
    std::string input{};
    std::filesystem::path directory{};
    std::function<void(std::string_view)> listener{};
};

/// How it ended. `status` is the exit status, 128+N after signal N, 127 if there is no such
/// program.
struct CommandResult {
    int status = 0;
    std::string output{};
    std::string error{};
};

/// Runs a command to its end. This library spawns nothing by itself: the launcher brings this.
using Runner = std::function<CommandResult(const Command&)>;

/// A program that a build runs, or a file that it reads, and Debian's package that has it.
struct BuildTool {
    const char* name;  ///< of a file: its path
    const char* package;
};

/// Is told, in a few words, what a long operation does next ("downloading packages").
using Progress = std::function<void(std::string_view)>;

}  // namespace qvm::images
