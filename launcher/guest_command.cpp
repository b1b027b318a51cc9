#include "launcher/guest_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <utility>

#include "launcher/base64.h"
#include "launcher/failure.h"
#include "launcher/qemu_command.h"

namespace qvm {

namespace json = boost::json;

namespace {

/// The outer shell's script, in three parts. Its variables are: tag, secret, directory, user,
/// terminal (whether there is one), rows, columns and inner, the inner shell's script; its
/// parameters are the inner one's: NAME=value..., "--", the command. Ports are found by sysfs,
/// since not every guest has udev's names for them, and come up a moment after they were plugged
/// in. A terminal is one of the kernel's virtio consoles: the one that can be opened only after the
/// port of stderr was. When the command has ended, the outer shell tells how, behind all that it
/// wrote; 9 is its own exit status where there are no ports. What it has to say itself (that the
/// command was killed, say) is nobody's. A user is changed by coreutils, which change nothing else,
/// or else by busybox; su(1) of other makes stays as the command's parent, and keeps signals from
/// it.
constexpr const char* functions = R"(exec 2>/dev/null
umask 022
export PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export HOME="${HOME:-/root}"
tries=0
patience() {
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || exit 9
    sleep 0.01 || sleep 1
}
find_port() {
    while :; do
        for port in /sys/class/virtio-ports/*; do
            name=
            read -r name <"$port/name" || continue
            port=/dev/${port##*/}
            [ "$name" = "qvm.$1.$tag" ] && [ -c "$port" ] && return
        done
        patience
    done
}
opens() { [ -c "$1" ] && (: <"$1"); }
find_terminal() {
    while :; do
        for port in /dev/hvc*; do
            case $consoles in *" $port "*) continue ;; esac
            opens "$port" && return
        done
        patience
    done
}
end() {
    [ -z "$terminal" ] || exec 4>"$terminal"  # what a session leader leaves is hung up
    printf '\000%s \n' "$secret" >&4
    printf '\000%s %s\n' "$secret" "$1" >&3
    exit
}
refuse() { echo "$1" >&3; end 126; }
)";

constexpr const char* open_ports = R"([ -d /sys/class/virtio-ports ] || exit 9
consoles=" "
[ -z "$terminal" ] || for port in /dev/hvc*; do opens "$port" && consoles="$consoles$port "; done
find_port err; exec 3>"$port"
if [ -n "$terminal" ]; then
    find_terminal; exec 4<>"$port"
    [ "$columns" = 0 ] || stty rows "$rows" cols "$columns" <&4
    terminal=$port
else
    find_port in; exec 5<"$port"
    find_port out; exec 4>"$port"
fi
)";

constexpr const char* run = R"(set -- sh -c "$inner" sh "$secret" "$terminal" "$@"
if [ -n "$user" ]; then
    login=${user%%:*} account=
    while IFS=: read -r name x number x x home x; do
        case $login in "$name" | "$number") account=$name HOME=$home; break ;; esac
    done <<EOF
$(getent passwd "$login" || cat /etc/passwd)
EOF
    case $account,$login in ,*[!0-9]*) refuse "the guest has no user '$login'" ;; esac
    [ -z "$terminal" ] || chown "$login" "$terminal"
    case $(chroot --help 2>&1) in
        *--userspec*) set -- chroot --userspec="$user" --skip-chdir / "$@" ;;
        *)
            [ -n "$account" ] && [ "$login" = "$user" ] ||
                refuse "the guest's chroot has no --userspec, which it takes for '$user'"
            set -- su -s /bin/sh -c 'exec "$@"' -- "$account" sh "$@" ;;
    esac
fi
[ -z "$directory" ] || cd "$directory" 2>&3 || end 126
if [ -n "$terminal" ]; then
    (exec setsid "$@" 2>&3 4>&-)
else
    command -v setsid >/dev/null && set -- setsid "$@"
    (exec "$@" <&5 5<&- >&4 4>&- 2>&3)
fi
end $?
)";

constexpr const char* take_parameters =
    R"(tag=$1 secret=$2 directory=$3 user=$4 terminal=$5 rows=$6 columns=$7 inner=$8
shift 8
)";

/// The same before it knows its command: that comes on the port of stdin, as lines of shell with a
/// line before and after them that is not among them. A guest whose VM has no more to say lets it
/// go.
constexpr const char* take_command = R"(exec <&5
IFS= read -r mark || exit 9
request=
while IFS= read -r line || exit 9; [ "$line" != "$mark" ]; do
    request="$request$line
"
done
eval "$request"
)";

/// The inner shell becomes the command, and tells its process ID before. It has no variables of its
/// own, which the command's could be taken for.
constexpr const char* inner_script = R"(printf '%s %s %s\n' "$1" $$ "$2" >&3
if [ -n "$2" ]; then exec <>"$2" >&0 2>&0; fi
exec 3>&-
shift 2
while [ "$1" != -- ]; do export "$1"; shift; done
shift
exec "$@")";

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
    const auto text = [&](const char* key) {
        const auto* value = object.if_contains(key);
        return value != nullptr && value->is_string() ? std::string{value->get_string()} : "";
    };
    command.directory = text("directory");
    command.user = text("user");
    const auto* terminal = object.if_contains("terminal");
    if (terminal != nullptr && terminal->is_object()) {
        const auto number = [&](const char* key) {
            const auto* value = terminal->get_object().if_contains(key);
            return value != nullptr && value->is_int64() ? static_cast<unsigned>(value->get_int64())
                                                         : 0;
        };
        command.terminal = TerminalSize{number("rows"), number("columns")};
    }
    if (command.argv.empty()) throw Failure("a guest command is empty");
    return command;
}

std::string guest_port_name(std::string_view stream, unsigned long tag) {
    return fmt::format("qvm.{}.{}", stream, tag);
}

json::object guest_exec_arguments(const GuestCommand& command, unsigned long tag,
                                  const std::string& secret, const std::string& prelude) {
    const auto size = command.terminal.value_or(TerminalSize{});
    json::array words{"-c",
                      prelude + functions + take_parameters + open_ports + run,
                      "qvm",
                      std::to_string(tag),
                      secret,
                      command.directory,
                      command.user,
                      command.terminal ? "yes" : "",
                      std::to_string(size.rows),
                      std::to_string(size.columns),
                      inner_script};
    for (const auto& variable : command.environment) words.emplace_back(variable);
    words.emplace_back("--");
    for (const auto& word : command.argv) words.emplace_back(word);
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}};
}

json::object guest_wait_arguments(unsigned long tag) {
    constexpr const char* parameters = "tag=$1 inner=$2 terminal=\n";
    json::array words{"-c", std::string{functions} + parameters + open_ports + take_command + run,
                      "qvm", std::to_string(tag), inner_script};
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}};
}

std::string guest_request(const GuestCommand& command, const std::string& secret,
                          const std::string& prelude) {
    std::string words;
    for (const auto& variable : command.environment) words += shell_word(variable) + " ";
    words += "--";
    for (const auto& word : command.argv) words += " " + shell_word(word);
    return fmt::format("{0}\n{1}secret={0} directory={2} user={3}\nset -- {4}\n{0}\n", secret,
                       prelude, shell_word(command.directory), shell_word(command.user), words);
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
    const auto number = [&](const char* key) {
        const auto value = get(key);
        return value.is_int64() ? static_cast<int>(value.get_int64()) : 0;
    };
    const auto data = [&](const char* key) {
        const auto value = get(key);
        return value.is_string() ? from_base64(value.get_string()) : std::string{};
    };
    if (!get("exited").is_bool()) throw Failure("the guest agent is not understood");
    if (get("exited") == false) return std::nullopt;
    const auto signal = number("signal");
    return GuestCapture{
        .out = data("out-data"),
        .err = data("err-data"),
        .exit_status = signal != 0 ? status::signalled + signal : number("exitcode"),
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
