#include "launcher/guest_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <charconv>
#include <utility>

#include "launcher/failure.h"

namespace qvm {

namespace json = boost::json;

namespace {

/// Parameters: tag, secret, directory, NAME=value..., "--", the command. Ports are found by sysfs,
/// since not every guest has udev's names for them, and come up a moment after they were plugged
/// in. The inner shell becomes the command, and tells its process ID before; the outer one tells
/// how it ended, when all that it wrote has left the guest. What the outer one has to say itself
/// (that the command was killed, say) is nobody's.
constexpr const char* script = R"(exec 2>/dev/null
tag=$1 secret=$2 directory=$3
shift 3
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export HOME="${HOME:-/root}"
while [ "$1" != -- ]; do export "$1"; shift; done
shift
find_port() {
    tries=0
    while :; do
        for port in /sys/class/virtio-ports/*; do
            name=
            read -r name <"$port/name" || continue
            port=/dev/${port##*/}
            [ "$name" = "qvm.$1.$tag" ] && [ -c "$port" ] && return
        done
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || exit 1
        sleep 0.01 || sleep 1
    done
}
find_port err; exec 3>"$port"
find_port in; in=$port
find_port out; out=$port
end() { printf '\000%s %s\n' "$secret" "$1" >&3; exit; }
[ -z "$directory" ] || cd "$directory" 2>&3 || end 126
sh -c 'printf "%s %s\n" "$1" $$ >&3; shift; exec 2>&3 3>&-; exec "$@"' sh "$secret" "$@" <"$in" >"$out"
end $?
)";

json::array to_array(const std::vector<std::string>& words) {
    json::array array;
    for (const auto& word : words) array.emplace_back(word);
    return array;
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
    return {{"argv", to_array(command.argv)},
            {"environment", to_array(command.environment)},
            {"directory", command.directory}};
}

GuestCommand parse_guest_command(const json::object& object) {
    GuestCommand command{words_of(object, "argv"), words_of(object, "environment"), {}};
    const auto* directory = object.if_contains("directory");
    if (directory != nullptr && directory->is_string()) command.directory = directory->get_string();
    if (command.argv.empty()) throw Failure("a guest command is empty");
    return command;
}

std::string guest_port_name(std::string_view stream, std::string_view tag) {
    return fmt::format("qvm.{}.{}", stream, tag);
}

json::object guest_exec_arguments(const GuestCommand& command, const std::string& tag,
                                  const std::string& secret) {
    json::array words{"-c", script, "qvm", tag, secret, command.directory};
    for (const auto& variable : command.environment) words.emplace_back(variable);
    words.emplace_back("--");
    for (const auto& word : command.argv) words.emplace_back(word);
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}};
}

json::object guest_kill_arguments(std::int64_t pid, const std::string& signal) {
    return {{"path", "/bin/sh"},
            {"arg", json::array{"-c", R"(kill -s "$1" "$2")", "qvm", signal, std::to_string(pid)}}};
}

GuestStderr::GuestStderr(const std::string& secret)
    : prefix_(secret + " "), mark_(std::string(1, '\0') + secret + " ") {}

std::string GuestStderr::feed(std::string_view bytes) {
    held_ += bytes;
    if (!pid_ && held_.starts_with(prefix_)) {
        const auto end = held_.find('\n');
        if (end == std::string::npos) return {};
        pid_ =
            number_in<std::int64_t>(std::string_view{held_}.substr(0, end).substr(prefix_.size()));
        held_.erase(0, end + 1);
    } else if (!pid_ && prefix_.starts_with(held_)) {
        return {};
    }
    auto size = held_.find(mark_);
    if (size == std::string::npos) {
        size = held_.size() - common_length(held_, mark_);
    } else if (const auto end = held_.find('\n', size); end != std::string::npos) {
        const auto from = size + mark_.size();
        exit_status_ = number_in<int>(std::string_view{held_}.substr(from, end - from));
        held_.erase(size);
    }
    auto text = held_.substr(0, size);
    held_.erase(0, size);
    return text;
}

std::string GuestStderr::finish() {
    return std::exchange(held_, {});
}

}  // namespace qvm
