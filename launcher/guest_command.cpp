#include "launcher/guest_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <utility>

#include "launcher/base64.h"
#include "launcher/failure.h"
#include "launcher/guest_files.h"
#include "launcher/json_text.h"
#include "launcher/qemu_command.h"

namespace qvm {

namespace json = boost::json;

namespace {

std::string variable(const std::string& name, const std::string& value) {
    return name + "=" + shell_word(value) + "\n";
}

/// The parameters of session.sh behind the terminal, as words of shell.
std::string session_words(const GuestCommand& command) {
    auto words = shell_word(command.directory) + " " + shell_word(command.user) + " ";
    for (const auto& variable : command.environment) words += shell_word(variable) + " ";
    words += "--";
    for (const auto& word : command.argv) words += " " + shell_word(word);
    return words;
}

std::vector<std::string> words_of(const json::object& object, const char* key) {
    std::vector<std::string> words;
    const auto* value = object.if_contains(key);
    if (value == nullptr || !value->is_array())
        throw Failure(fmt::format("a guest command has no '{}'", key));
    for (const auto& word : value->get_array()) {
        if (!word.is_string()) throw Failure(fmt::format("a guest command's '{}' is wrong", key));
        words.emplace_back(word.get_string());
    }
    return words;
}

constexpr std::size_t longest_word = 64;  // bytes, of what a shell of ours says

/// The longest end of `text` that `mark` begins with.
std::size_t common_length(std::string_view text, std::string_view mark) {
    auto length = std::min(text.size(), mark.size());
    while (length > 0 && text.substr(text.size() - length) != mark.substr(0, length)) --length;
    return length;
}

template <typename Number>
std::optional<Number> number_in(std::string_view text) {
    Number number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
    return number;
}

}  // namespace

json::object to_json(const GuestCommand& command) {
    json::object object{{"argv", json::value_from(command.argv)},
                        {"environment", json::value_from(command.environment)},
                        {"directory", command.directory},
                        {"user", command.user}};
    if (command.terminal)
        object["terminal"] =
            json::object{{"rows", command.terminal->rows}, {"columns", command.terminal->columns}};
    return object;
}

GuestCommand parse_guest_command(const json::object& object) {
    GuestCommand command;
    command.argv = words_of(object, "argv");
    command.environment = words_of(object, "environment");
    command.directory = text_in(object, "directory");
    command.user = text_in(object, "user");
    const auto* terminal = object.if_contains("terminal");
    if (terminal != nullptr && terminal->is_object()) {
        command.terminal = TerminalSize{static_cast<unsigned>(number_in(*terminal, "rows")),
                                        static_cast<unsigned>(number_in(*terminal, "columns"))};
    }
    if (command.argv.empty()) throw Failure("a guest command is empty");
    return command;
}

std::string guest_port_name(std::string_view stream, unsigned long tag) {
    return fmt::format("qvm.{}.{}", stream, tag);
}

json::object guest_script_arguments(const std::string& script) {
    json::array words{"-c", "[ -e /proc/self/fd/0 ] || exit 9; . /proc/self/fd/0"};
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}, {"input-data", to_base64(script)}};
}

json::object guest_exec_arguments(const GuestCommand& command, unsigned long tag,
                                  const std::string& secret,
                                  const std::optional<Awakening>& awakening) {
    using namespace guest_files;
    std::string script;
    if (awakening) script = awaken_functions() + awaken_call(*awakening);
    const auto size = command.terminal.value_or(TerminalSize{});
    script +=
        variable("session", std::string{session_sh}) +
        variable("command", std::string{command_sh}) +
        fmt::format("tag={} secret={} terminal={} rows={} columns={}\nset -- {}\n", tag, secret,
                    command.terminal ? "yes" : "", size.rows, size.columns, session_words(command));
    script += open_ports_sh;
    script += run_sh;
    return guest_script_arguments(script);
}

json::object guest_wait_arguments(unsigned long tag) {
    using namespace guest_files;
    auto session = awaken_functions();
    session += request_sh;
    session += session_sh;
    auto script = variable("session", session) + variable("command", std::string{command_sh}) +
                  fmt::format("tag={} terminal=\n", tag);
    script += open_ports_sh;
    script += wait_sh;
    return guest_script_arguments(script);
}

std::string guest_becomes(const GuestCommand& command, const std::string& secret) {
    return fmt::format("set -- {} '' {}\n", secret, session_words(command));
}

std::string guest_request(const std::string& words, const std::string& mark) {
    return fmt::format("{0}\n{1}{0}\n", mark, words);
}

json::object guest_kill_arguments(std::int64_t pid, const std::string& signal) {
    return {{"path", "/bin/sh"},
            {"arg", json::array{"-c", R"(kill -s "$1" -- "-$2" || kill -s "$1" "$2")", "qvm",
                                signal, std::to_string(pid)}}};
}

json::object guest_capture_arguments(const GuestCommand& command, std::string_view input) {
    if (!command.environment.empty() || !command.directory.empty() || !command.user.empty() ||
        command.terminal)
        throw Failure(
            "the guest has no shell, or no serial ports for a command's streams, and "
            "without those there is no --env, --workdir, --user and --tty");
    json::object arguments{{"path", command.argv.front()}, {"capture-output", true}};
    arguments["arg"] = json::value_from(std::vector(command.argv.begin() + 1, command.argv.end()));
    if (!input.empty()) arguments["input-data"] = to_base64(input);
    return arguments;
}

std::optional<GuestCapture> parse_guest_capture(const json::value& answer) {
    const auto* object = answer.if_object();
    const auto get = [&](const char* key) {
        const auto* value = object != nullptr ? object->if_contains(key) : nullptr;
        return value != nullptr ? *value : json::value{};
    };
    if (!get("exited").is_bool()) throw Failure("the guest agent is not understood");
    if (get("exited") == false) return std::nullopt;
    const auto signal = static_cast<int>(number_in(answer, "signal"));
    return GuestCapture{.out = from_base64(text_in(answer, "out-data")),
                        .err = from_base64(text_in(answer, "err-data")),
                        .exit_status = signal != 0
                                           ? status::signalled + signal
                                           : static_cast<int>(number_in(answer, "exitcode")),
                        .truncated = get("out-truncated") == true || get("err-truncated") == true};
}

std::string guest_begin(const std::string& secret, std::int64_t pid) {
    return fmt::format("{} {}\n", secret, pid);
}

std::string guest_end(const std::string& secret, const std::string& word) {
    return std::string(1, '\0') + fmt::format("{} {}\n", secret, word);
}

json::object guest_resize_arguments(const std::string& terminal, TerminalSize size) {
    return {{"path", "stty"},
            {"arg", json::array{"-F", terminal, "rows", std::to_string(size.rows), "cols",
                                std::to_string(size.columns)}}};
}

GuestOutput::GuestOutput(const std::string& secret) : mark_(std::string(1, '\0') + secret + " ") {}

std::string GuestOutput::feed(std::string_view bytes) {
    if (end_) return {};
    held_ += bytes;
    const auto mark = held_.find(mark_);
    const bool found = mark != std::string::npos;
    auto text = held_.substr(0, found ? mark : held_.size() - common_length(held_, mark_));
    held_.erase(0, text.size());
    if (!found) return text;
    const auto line = held_.find('\n');
    // A guest that says no more than the mark must not fill our memory with what follows.
    if (line != std::string::npos || held_.size() > mark_.size() + longest_word)
        end_ = std::exchange(held_, {}).substr(mark_.size(), line - mark_.size());
    return text;
}

std::string GuestOutput::finish() {
    return std::exchange(held_, {});
}

GuestStderr::GuestStderr(const std::string& secret) : prefix_(secret + " "), output_(secret) {}

std::string GuestStderr::feed(std::string_view bytes) {
    if (begun_) return output_.feed(bytes);
    begin_ += bytes;
    const auto line = begin_.find('\n');
    const bool is_prefix = begin_.starts_with(prefix_) &&
                           std::min(line, begin_.size()) <= prefix_.size() + longest_word;
    if (is_prefix ? line == std::string::npos : prefix_.starts_with(begin_)) return {};
    begun_ = true;
    const auto rest = std::exchange(begin_, {});
    if (!is_prefix) return output_.feed(rest);
    const std::string_view text{rest};
    const auto words = text.substr(prefix_.size(), line - prefix_.size());
    const auto space = std::min(words.find(' '), words.size());
    pid_ = number_in<std::int64_t>(words.substr(0, space));
    if (space < words.size()) terminal_ = words.substr(space + 1);
    return output_.feed(text.substr(line + 1));
}

std::string GuestStderr::finish() {
    return begun_ ? output_.finish() : std::exchange(begin_, {});
}

std::optional<int> GuestStderr::exit_status() const {
    return output_.end() ? number_in<int>(*output_.end()) : std::nullopt;
}

}  // namespace qvm
