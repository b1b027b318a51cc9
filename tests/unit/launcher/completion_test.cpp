#include "launcher/completion.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <functional>
#include <regex>
#include <set>
#include <sstream>

using namespace qvm;
using Shell = CompletionOptions::Shell;

namespace {

std::string path_of(const CommandShape& command) {
    std::string path;
    for (const auto& word : command.path) path += path.empty() ? word : " " + word;
    return path;
}

std::vector<CommandShape> all_commands() {
    std::vector<CommandShape> found;
    const std::function<void(const CommandShape&)> visit = [&](const CommandShape& command) {
        found.push_back(command);
        for (const auto& subcommand : command.subcommands) visit(subcommand);
    };
    visit(command_line_shape());
    return found;
}

bool is_long(const std::string& name) {
    return name.starts_with("--");
}

/// The line of `text` that begins with `start`.
std::string line_with(const std::string& text, const std::string& start) {
    std::istringstream lines{text};
    for (std::string line; std::getline(lines, line);)
        if (line.starts_with(start)) return line + " ";
    return {};
}

/// From the line that begins with `start` to the next empty one.
std::string paragraph_with(const std::string& text, const std::string& start) {
    const auto begin = text.find("\n" + start);
    if (begin == std::string::npos) return {};
    return text.substr(begin, text.find("\n\n", begin + 1) - begin);
}

std::string manual() {
    std::ifstream file{QVM_SOURCE_DIR "/docs/qvm.1"};
    return {std::istreambuf_iterator<char>{file}, {}};
}

}  // namespace

TEST_CASE("the shape is what the parser takes") {
    const auto qvm = command_line_shape();
    CHECK(qvm.path.empty());
    const auto run = qvm.subcommands.front();
    CHECK(path_of(run) == "run");
    CHECK(run.positionals.front().names.front() == "IMAGE");
    const auto option = [&](const std::string& name) {
        for (const auto& shape : run.options)
            for (const auto& other : shape.names)
                if (other == name) return shape;
        return ArgumentShape{};
    };
    CHECK(option("--memory").names == std::vector<std::string>{"-m", "--memory"});
    CHECK(option("--kernel").value == "FILE");
    CHECK(option("--publish").repeatable);
    CHECK(option("--detach").value.empty());
    CHECK(option("--timings").value == "FILE");
    CHECK(!option("--timings").value_required);
    CHECK(option("--timeout").value_required);
}

TEST_CASE("every command and long option is in the bash script") {
    const auto script = completion_script(Shell::bash, command_line_shape());
    for (const auto& command : all_commands()) {
        const auto path = path_of(command);
        CAPTURE(path);
        const auto options = line_with(script, "        '" + path + "') offered='");
        CHECK(!options.empty());
        for (const auto& option : command.options)
            for (const auto& name : option.names)
                CHECK(std::regex_search(options, std::regex{"[ ']" + name + "[ ']"}));
        const auto words = line_with(script, "        '" + path + ":0') offered='");
        for (const auto& subcommand : command.subcommands)
            CHECK(std::regex_search(words, std::regex{"[ ']" + subcommand.path.back() + "[ ']"}));
    }
}

TEST_CASE("every command and long option is in the zsh script") {
    const auto script = completion_script(Shell::zsh, command_line_shape());
    for (const auto& command : all_commands()) {
        std::string name = "_qvm";
        for (const auto& word : command.path) name += "_" + word;
        CAPTURE(name);
        const auto function = paragraph_with(script, name + "() {");
        CHECK(!function.empty());
        for (const auto& option : command.options)
            for (const auto& word : option.names)
                CHECK(std::regex_search(function, std::regex{"[)*]" + word + "[-+=]*\\["}));
        for (const auto& subcommand : command.subcommands)
            CHECK(function.find("'" + subcommand.path.back() + ":") != std::string::npos);
    }
}

TEST_CASE("every command and long option is in the fish script") {
    const auto script = completion_script(Shell::fish, command_line_shape());
    for (const auto& command : all_commands()) {
        const auto path = path_of(command);
        CAPTURE(path);
        const bool plain = !path.empty() && path.find(' ') == std::string::npos;
        const auto at = fmt::format("__qvm_at {0}{1}{0}", plain ? "" : "\"", path);
        for (const auto& option : command.options)
            for (const auto& name : option.names)
                if (is_long(name))
                    CHECK(std::regex_search(
                        script, std::regex{at + "'.* -l " + name.substr(2) + "( .*)?\n"}));
        for (const auto& subcommand : command.subcommands)
            CHECK(script.find(" -a " + subcommand.path.back() + " -d ") != std::string::npos);
    }
}

TEST_CASE("values that are known are offered") {
    for (const auto shell : {Shell::bash, Shell::zsh, Shell::fish}) {
        const auto script = completion_script(shell, command_line_shape());
        CHECK(script.find("isolated nat flat user none") != std::string::npos);
        CHECK(script.find("auto kvm tcg") != std::string::npos);
        CHECK(script.find("bash zsh fish") != std::string::npos);
    }
}

TEST_CASE("every command and long option is in the manual, and no other") {
    const auto text = manual();
    REQUIRE(!text.empty());
    std::set<std::string> known;
    for (const auto& command : all_commands()) {
        const auto path = path_of(command);
        CAPTURE(path);
        if (command.subcommands.empty())
            CHECK(std::regex_search(text, std::regex{"\n\\.It Ic qvm " + path + "( .*)?\n"}));
        for (const auto& option : command.options)
            for (const auto& name : option.names) known.insert(name);
    }
    // mdoc writes --memory as ".Fl -memory".
    const std::regex written{"Fl (-[a-z]+[-a-z]*)"};
    std::set<std::string> found;
    for (std::sregex_iterator match{text.begin(), text.end(), written}, end; match != end; ++match)
        found.insert(fmt::format("-{}", (*match)[1].str()));
    for (const auto& name : known)
        if (is_long(name)) CHECK(found.contains(name));
    for (const auto& name : found) {
        CAPTURE(name);
        CHECK(known.contains(name));
    }
}
