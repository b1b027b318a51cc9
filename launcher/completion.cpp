// Each script is a fixed frame around what the parser says of itself.

#include "launcher/completion.h"

#include <fmt/format.h>

#include "launcher/commands.h"
#include "launcher/failure.h"
#include "launcher/output.h"

namespace qvm {

namespace {

using Shell = CompletionOptions::Shell;

/// What is offered in one place: the words, or what `kind` says.
struct Offer {
    enum class Kind {
        nothing,
        words,
        files,
        living,
        all,
        networks,
        snapshots,
        images,     ///< of the store
        catalogue,  ///< those that can be pulled
        disks,      ///< files, and images of the store
    };
    Kind kind = Kind::nothing;
    std::string words = {};
};

std::string joined(const std::vector<std::string>& words, std::string_view separator = " ") {
    std::string text;
    for (const auto& word : words) {
        if (&word != &words.front()) text += separator;
        text += word;
    }
    return text;
}

Offer offer_of_name(const std::string& command) {
    if (command.starts_with("net ")) return {Offer::Kind::networks};
    if (command.starts_with("image ")) return {Offer::Kind::images};
    // These know VMs that were created and do not run, too.
    for (const auto* name : {"start", "rm", "inspect", "logs", "wait"})
        if (command == name) return {Offer::Kind::all};
    return {Offer::Kind::living};
}

std::string modes() {
    using Mode = NetOption::Mode;
    std::vector<std::string> words;
    for (const auto mode : {Mode::isolated, Mode::nat, Mode::flat, Mode::user, Mode::none})
        words.emplace_back(to_string(mode));
    words.emplace_back("bridge=");
    return joined(words);
}

std::string accelerators() {
    std::vector<std::string> words;
    for (const auto accel : {Accel::automatic, Accel::kvm, Accel::tcg})
        words.emplace_back(to_string(accel));
    return joined(words);
}

std::string architectures() {
    std::vector<std::string> words;
    for (const auto architecture : {Architecture::x86_64, Architecture::aarch64})
        words.emplace_back(to_string(architecture));
    return joined(words);
}

std::string uplinks() {
    std::vector<std::string> words;
    for (const auto uplink : {Uplink::automatic, Uplink::veth, Uplink::pasta})
        words.emplace_back(to_string(uplink));
    return joined(words);
}

/// Of the value that the parser calls `value`.
Offer offer_of_value(const std::string& value) {
    if (value == "FILE" || value == "PATH") return {Offer::Kind::files};
    if (value == "MODE") return {Offer::Kind::words, modes()};
    if (value == "ACCEL") return {Offer::Kind::words, accelerators()};
    if (value == "ARCH") return {Offer::Kind::words, architectures()};
    if (value == "FIRMWARE") return {Offer::Kind::words, "bios uefi"};
    if (value == "UPLINK") return {Offer::Kind::words, uplinks()};
    if (value == "SHELL") return {Offer::Kind::words, "bash zsh fish"};
    return {};
}

std::string path_of(const CommandShape& command) {
    return joined(command.path);
}

Offer offer_of_positional(const CommandShape& command, const ArgumentShape& positional) {
    const auto& name = positional.names.front();
    if (name == "NAME") return offer_of_name(path_of(command));
    if (name == "IMAGE")
        return {command.path.back() == "pull" ? Offer::Kind::catalogue : Offer::Kind::disks};
    // Those that there are; the others make one.
    const auto& verb = command.path.back();
    if (name == "SNAPSHOT" && verb != "create" && verb != "import") return {Offer::Kind::snapshots};
    return offer_of_value(name);
}

std::vector<std::string> names_of(const std::vector<CommandShape>& commands) {
    std::vector<std::string> names;
    for (const auto& command : commands) names.push_back(command.path.back());
    return names;
}

template <typename Visit>
void for_each_command(const CommandShape& command, Visit visit) {
    visit(command);
    for (const auto& subcommand : command.subcommands) for_each_command(subcommand, visit);
}

/// With a backslash before each character that is in `special`.
std::string escaped(std::string_view text, std::string_view special) {
    std::string result;
    for (const char c : text) {
        if (special.find(c) != std::string_view::npos) result += '\\';
        result += c;
    }
    return result;
}

/// One word of a POSIX shell.
std::string shell_word(std::string_view text) {
    std::string result = "'";
    for (const char c : text) result += c == '\'' ? std::string{"'\\''"} : std::string{c};
    return result + "'";
}

// --- bash ---------------------------------------------------------------------------------------

constexpr std::string_view bash_head =
    R"script(# bash completion of qvm, made by 'qvm completion bash'

_qvm_names() {
    case $2 in
    living) "$1" ps -q ;;
    all) "$1" ps -a -q ;;
    networks) "$1" ps -q && "$1" net ls | sed '1d; s/ .*//' ;;
    snapshots) "$1" snapshot ls -q ;;
    images) "$1" image ls -q ;;
    catalogue) "$1" image ls --catalogue -q ;;
    esac 2>/dev/null
}

_qvm() {
    local word words=() glued= i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # bash breaks words at '=' and ':', which are words of their own then.
        if ((i > 0)) && [[ $glued || $word == [=:]* ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
        if [[ $word == [=:]* ]]; then glued=yes; else glued=; fi
    done

    # Where we are: the command, the option that waits for its value, how many words were its own.
    local path= option= rest= positional=0
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ $option ]]; then
            option=
            continue
        fi
        if [[ $rest ]]; then
            [[ $word == -- ]] || ((++positional))
            continue
        fi
        case $path:$word in
        *:--) rest=yes ;;
)script";

/// In front of the commands whose words are somebody else's.
constexpr std::string_view bash_others = R"script(        *:-*) ;;
        *)
            ((++positional))
            case $path in
)script";

constexpr std::string_view bash_values = R"script(            esac
            ;;
        esac
    done

    local cur=${words[-1]} prefix= offered= names= files= commands=
    if [[ ! $option && ! $rest && $cur == --*=* ]]; then
        option=${cur%%=*}
        cur=${cur#*=}
        [[ $COMP_WORDBREAKS == *=* ]] || prefix=$option=
    fi
    if [[ $option ]]; then
        case $path:$option in
)script";

constexpr std::string_view bash_options = R"script(        esac
    elif [[ ! $rest && $cur == -* ]]; then
        case $path in
)script";

constexpr std::string_view bash_positionals = R"script(        esac
    else
        case $path:$positional in
)script";

constexpr std::string_view bash_tail = R"script(        esac
    fi

    COMPREPLY=()
    if [[ $commands ]]; then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur" | sort -u)
        return
    fi
    [[ $names ]] && offered=$(_qvm_names "${words[0]}" "$names" | sort -u)
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$offered" -- "$cur")
    if [[ $files ]]; then
        compopt -o default
        # Which bash does itself where nothing else is offered.
        ((${#COMPREPLY[@]} == 0)) || mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
    fi
    # Of a word that bash has broken it wants what follows the last colon.
    [[ $cur != *:* || $COMP_WORDBREAKS != *:* ]] || COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}")
}

complete -F _qvm qvm
)script";

std::string bash_offer(const Offer& offer) {
    switch (offer.kind) {
        case Offer::Kind::words:
            return "offered=" + shell_word(offer.words);
        case Offer::Kind::files:
            return "files=yes";
        case Offer::Kind::living:
            return "names=living";
        case Offer::Kind::all:
            return "names=all";
        case Offer::Kind::networks:
            return "names=networks";
        case Offer::Kind::snapshots:
            return "names=snapshots";
        case Offer::Kind::images:
            return "names=images";
        case Offer::Kind::catalogue:
            return "names=catalogue";
        case Offer::Kind::disks:
            return "files=yes names=images";
        case Offer::Kind::nothing:
            break;
    }
    return {};
}

/// A pattern of `case` for each of an option's names.
std::string bash_pattern(const std::string& path, const ArgumentShape& option) {
    std::vector<std::string> patterns;
    for (const auto& name : option.names) patterns.push_back(shell_word(path + ":" + name));
    return joined(patterns, " | ");
}

struct BashCases {
    std::string words, others, values, options, positionals;

    void add(const CommandShape& command) {
        const auto path = path_of(command);
        std::vector<std::string> names;
        for (const auto& option : command.options) {
            names.insert(names.end(), option.names.begin(), option.names.end());
            if (!option.value.empty()) add_value(path, option);
        }
        options +=
            fmt::format("        {}) offered={} ;;\n", shell_word(path), shell_word(joined(names)));
        if (!command.subcommands.empty()) add_subcommands(path, command);
        for (std::size_t i = 0; i < command.positionals.size(); ++i)
            add_positional(path, command, i);
        if (!command.takes_command) return;
        others += fmt::format("            {}) rest=yes ;;\n", shell_word(path));
        const auto count = command.positionals.size();
        positionals +=
            fmt::format("        {}) commands=yes ;;\n        {}*) files=yes ;;\n",
                        shell_word(fmt::format("{}:{}", path, count)), shell_word(path + ":"));
    }

  private:
    void add_value(const std::string& path, const ArgumentShape& option) {
        if (option.value_required)
            words += fmt::format("        {}) option=$word ;;\n", bash_pattern(path, option));
        if (const auto offer = bash_offer(offer_of_value(option.value)); !offer.empty())
            values += fmt::format("        {}) {} ;;\n", bash_pattern(path, option), offer);
    }
    void add_subcommands(const std::string& path, const CommandShape& command) {
        const auto names = names_of(command.subcommands);
        std::vector<std::string> patterns;
        for (const auto& name : names) patterns.push_back(shell_word(path + ":" + name));
        words += fmt::format("        {}) path={}$word ;;\n", joined(patterns, " | "),
                             path.empty() ? "" : shell_word(path + " "));
        positionals += fmt::format("        {}) offered={} ;;\n", shell_word(path + ":0"),
                                   shell_word(joined(names)));
    }
    void add_positional(const std::string& path, const CommandShape& command, std::size_t i) {
        const auto& positional = command.positionals[i];
        const auto offer = bash_offer(offer_of_positional(command, positional));
        if (offer.empty()) return;
        const auto pattern = positional.repeatable ? shell_word(path + ":") + "*"
                                                   : shell_word(fmt::format("{}:{}", path, i));
        positionals += fmt::format("        {}) {} ;;\n", pattern, offer);
    }
};

std::string bash_script(const CommandShape& qvm) {
    BashCases cases;
    for_each_command(qvm, [&](const CommandShape& command) { cases.add(command); });
    std::string text;
    for (const std::string_view part :
         {bash_head, std::string_view{cases.words}, bash_others, std::string_view{cases.others},
          bash_values, std::string_view{cases.values}, bash_options,
          std::string_view{cases.options}, bash_positionals, std::string_view{cases.positionals},
          bash_tail})
        text += part;
    return text;
}

// --- zsh ----------------------------------------------------------------------------------------

constexpr std::string_view zsh_head = R"script(#compdef qvm
# zsh completion of qvm, made by 'qvm completion zsh'

_qvm_living() { compadd "$@" -- ${(f)"$($qvm ps -q 2>/dev/null)"} }
_qvm_all() { compadd "$@" -- ${(f)"$($qvm ps -a -q 2>/dev/null)"} }
_qvm_snapshots() { compadd "$@" -- ${(f)"$($qvm snapshot ls -q 2>/dev/null)"} }
_qvm_images() { compadd "$@" -- ${(f)"$($qvm image ls -q 2>/dev/null)"} }
_qvm_catalogue() { compadd "$@" -- ${(f)"$($qvm image ls --catalogue -q 2>/dev/null)"} }
_qvm_disks() { _alternative 'files:file:_files' 'images:image:_qvm_images' }
_qvm_networks() {
  compadd "$@" -- ${(fu)"$({ $qvm ps -q && $qvm net ls | sed '1d; s/ .*//' } 2>/dev/null)"}
}
)script";

constexpr std::string_view zsh_tail = R"script(
if [[ $funcstack[1] == _qvm ]]; then
  _qvm "$@"
else
  compdef _qvm qvm
fi
)script";

std::string zsh_action(const Offer& offer) {
    switch (offer.kind) {
        case Offer::Kind::words:
            return "(" + offer.words + ")";
        case Offer::Kind::files:
            return "_files";
        case Offer::Kind::living:
            return "_qvm_living";
        case Offer::Kind::all:
            return "_qvm_all";
        case Offer::Kind::networks:
            return "_qvm_networks";
        case Offer::Kind::snapshots:
            return "_qvm_snapshots";
        case Offer::Kind::images:
            return "_qvm_images";
        case Offer::Kind::catalogue:
            return "_qvm_catalogue";
        case Offer::Kind::disks:
            return "_qvm_disks";
        case Offer::Kind::nothing:
            break;
    }
    return " ";
}

/// One argument of _arguments for each of an option's names.
/// One argument of _arguments for each of an option's names.
std::string zsh_option(const ArgumentShape& option) {
    std::string text;
    for (const auto& name : option.names) {
        const auto before =
            option.repeatable ? std::string{"*"} : fmt::format("({})", joined(option.names));
        std::string value, separator;
        if (!option.value.empty()) {
            value = fmt::format("{}{}:{}", option.value_required ? ":" : "::", option.value,
                                zsh_action(offer_of_value(option.value)));
            separator = !option.value_required ? "=-" : name.starts_with("--") ? "=" : "+";
        }
        text += " \\\n    " + shell_word(fmt::format("{}{}{}[{}]{}", before, name, separator,
                                                     escaped(option.what, "[]\\"), value));
    }
    return text;
}

std::string zsh_function(const CommandShape& command) {
    std::string name = "_qvm";
    for (const auto& word : command.path) name += "_" + word;
    std::string arguments;
    for (const auto& option : command.options) arguments += zsh_option(option);
    if (command.subcommands.empty()) {
        std::size_t number = 0;
        for (const auto& positional : command.positionals) {
            const auto place = positional.repeatable ? "*" : std::to_string(++number);
            arguments += " \\\n    " + shell_word(fmt::format(
                                           "{}:{}:{}", place, positional.names.front(),
                                           zsh_action(offer_of_positional(command, positional))));
        }
        if (command.takes_command)
            arguments += fmt::format(
                " \\\n    '{}:command: _command_names -e' \\\n    '*:file:_files'", number + 1);
        return fmt::format("\n{}() {{\n  _arguments -s -S{}\n}}\n", name, arguments);
    }
    std::string described, cases;
    for (const auto& subcommand : command.subcommands) {
        const auto& word = subcommand.path.back();
        described +=
            "\n    " + shell_word(fmt::format("{}:{}", word, escaped(subcommand.what, ":\\")));
        cases += fmt::format("    {0}) {1}_{0} && ret=0 ;;\n", word, name);
    }
    const auto program = command.path.empty() ? "  local qvm=${(Q)words[1]}\n" : "";
    return fmt::format(
        "\n{0}() {{\n"
        "  local curcontext=$curcontext state line ret=1\n"
        "  typeset -A opt_args\n"
        "{1}"
        "  local -a subcommands=({2}\n  )\n"
        "  _arguments -C{3} \\\n    '1: :->command' \\\n    '*:: :->rest' && ret=0\n"
        "  if [[ $state == command ]]; then\n"
        "    _describe command subcommands && ret=0\n"
        "  elif [[ $state == rest ]]; then\n"
        "    case $line[1] in\n{4}    esac\n"
        "  fi\n"
        "  return ret\n"
        "}}\n",
        name, program, described, arguments, cases);
}

std::string zsh_script(const CommandShape& qvm) {
    std::string text{zsh_head};
    for_each_command(qvm, [&](const CommandShape& command) { text += zsh_function(command); });
    return text + std::string{zsh_tail};
}

// --- fish ---------------------------------------------------------------------------------------

constexpr std::string_view fish_head =
    R"script(# fish completion of qvm, made by 'qvm completion fish'

function __qvm_program
    set -l words (commandline -opc)
    echo $words[1]
end

# Whether the command $argv[1] was named, and $argv[2] words after it, if that is given.
function __qvm_at
    set -l words
    for word in (commandline -opc)[2..-1]
        string match -q -- '-*' $word; or set -a words $word
    end
    if test -z "$argv[1]"
        test (count $words) -eq 0
        return
    end
    set -l path (string split ' ' -- $argv[1])
    set -l depth (count $path)
    test (count $words) -ge $depth; or return 1
    test "$words[1..$depth]" = "$path"; or return 1
    test (count $argv) -eq 1; or test (count $words) -eq (math $depth + $argv[2])
end

function __qvm_living
    eval (__qvm_program) ps -q 2>/dev/null
end

function __qvm_all
    eval (__qvm_program) ps -a -q 2>/dev/null
end

function __qvm_snapshots
    eval (__qvm_program) snapshot ls -q 2>/dev/null
end

function __qvm_images
    eval (__qvm_program) image ls -q 2>/dev/null
end

function __qvm_catalogue
    eval (__qvm_program) image ls --catalogue -q 2>/dev/null
end

function __qvm_networks
    __qvm_living
    eval (__qvm_program) net ls 2>/dev/null | string replace -r ' .*' '' | tail -n +2
end

complete -c qvm -f
)script";

std::string fish_quoted(std::string_view text) {
    return fmt::format("'{}'", escaped(text, "'\\"));
}

std::string fish_offer(const Offer& offer) {
    switch (offer.kind) {
        case Offer::Kind::words:
            return " -a " + fish_quoted(offer.words);
        case Offer::Kind::files:
            return " -F";
        case Offer::Kind::living:
            return " -a '(__qvm_living)'";
        case Offer::Kind::all:
            return " -a '(__qvm_all)'";
        case Offer::Kind::networks:
            return " -a '(__qvm_networks)'";
        case Offer::Kind::snapshots:
            return " -a '(__qvm_snapshots)'";
        case Offer::Kind::images:
            return " -a '(__qvm_images)'";
        case Offer::Kind::catalogue:
            return " -a '(__qvm_catalogue)'";
        case Offer::Kind::disks:
            return " -F -a '(__qvm_images)'";
        case Offer::Kind::nothing:
            break;
    }
    return {};
}

std::string fish_condition(const std::string& path, const std::string& count = {}) {
    const bool plain = !path.empty() && path.find(' ') == std::string::npos;
    return fmt::format("complete -c qvm -n '__qvm_at {0}{1}{0}{2}{3}'", plain ? "" : "\"", path,
                       count.empty() ? "" : " ", count);
}

std::string fish_option(const std::string& path, const ArgumentShape& option) {
    auto line = fish_condition(path);
    for (const auto& name : option.names)
        line += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    if (!option.value.empty() && option.value_required) {
        const auto offer = offer_of_value(option.value);
        line += (offer.kind == Offer::Kind::files ? " -r" : " -x") + fish_offer(offer);
    }
    return line + " -d " + fish_quoted(option.what) + "\n";
}

std::string fish_lines(const CommandShape& command) {
    const auto path = path_of(command);
    std::string text = "\n";
    for (const auto& subcommand : command.subcommands)
        text += fmt::format("{} -a {} -d {}\n", fish_condition(path, path.empty() ? "" : "0"),
                            subcommand.path.back(), fish_quoted(subcommand.what));
    for (const auto& option : command.options) text += fish_option(path, option);
    // Positionals are counted where no option's value can be taken for one.
    const bool counted = command.positionals.size() > 1 || command.takes_command;
    for (std::size_t i = 0; i < command.positionals.size(); ++i) {
        const auto offer = fish_offer(offer_of_positional(command, command.positionals[i]));
        if (offer.empty()) continue;
        text += fish_condition(path, counted ? std::to_string(i) : "") + offer + "\n";
    }
    if (command.takes_command)
        text += fish_condition(path, std::to_string(command.positionals.size())) +
                " -a '(complete -C (commandline -ct))'\n";
    return text;
}

std::string fish_script(const CommandShape& qvm) {
    std::string text{fish_head};
    for_each_command(qvm, [&](const CommandShape& command) { text += fish_lines(command); });
    return text;
}

}  // namespace

std::string completion_script(Shell shell, const CommandShape& qvm) {
    if (shell == Shell::bash) return bash_script(qvm);
    return shell == Shell::zsh ? zsh_script(qvm) : fish_script(qvm);
}

int completion(const CompletionOptions& options) {
    print(completion_script(options.shell, command_line_shape()));
    return status::ok;
}

}  // namespace qvm
