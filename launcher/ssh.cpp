// qvm ssh, ssh-config: the system's OpenSSH, over a connection that is opened in the VM's
// namespace.

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cstdlib>
#include <optional>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/definition.h"
#include "launcher/guest_ports.h"
#include "launcher/guest_script.h"
#include "launcher/memory_file.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/qemu_command.h"
#include "launcher/ssh_key.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_state.h"
#include "netns/namespace.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto boot_patience = 10min;  // longer than the supervisor's own
constexpr auto silent_patience = 3s;   // before a user is told what is waited for

/// Parameter: a public key. As the user who is to log in.
constexpr const char* authorize = R"(cd && umask 077 || exit
grep -qsF "$1" .ssh/authorized_keys && exit
[ -d .ssh ] || mkdir .ssh && printf '%s\n' "$1" >>.ssh/authorized_keys)";

LivingVm find_vm(const Directories& directories, const std::string& name) {
    auto vm = read_vm(directories.run, name);
    if (!vm) throw not_running(directories, name);
    return std::move(*vm);
}

/// Throws Failure where there is no way to the guest's sshd, before anything is waited for.
void check_way(const LivingVm& vm) {
    const auto options = vm_options_from(vm.json().at("spec").as_object());
    (void)guest_endpoint(options.net_or_default().mode, {}, options.publish, ssh_port);
}

/// Brings the guest to where qvm's key opens it for a user.
class Door {
  public:
    Door(const Directories& directories, const SshOptions& options)
        : directories_(directories),
          options_(options),
          control_(context_.get_executor(), directories, options.name),
          silence_(context_) {}

    /// Where its sshd is then, as the VM's namespace sees it, or the host where it has none.
    sockaddr_in open() {
        std::exception_ptr failure;
        asio::co_spawn(context_, run(), [&](std::exception_ptr why) {
            failure = why;
            context_.stop();
        });
        if (::isatty(STDERR_FILENO) != 0) {
            silence_.expires_after(silent_patience);
            silence_.async_wait([](auto error) {
                if (!error) say("qvm: waiting for the guest's ssh server");
            });
        }
        context_.run();
        if (failure) std::rethrow_exception(failure);
        return server_;
    }

  private:
    awaitable<void> run() {
        co_await control_.ready();
        boost::json::object stage{{"stage", "ssh"}};
        const auto answer =
            co_await control_.execute("qvm-wait-for", std::move(stage), boot_patience);
        const auto& problem = answer.at("problem");
        if (problem.is_string()) throw Failure(std::string{problem.get_string()});
        const auto address = asio::ip::make_address_v4(answer.at("address").as_string().c_str());
        server_.sin_family = AF_INET;
        server_.sin_port = htons(answer.at("port").to_number<std::uint16_t>());
        server_.sin_addr.s_addr = htonl(address.to_uint());
        // Where there is no agent, cloud-init has had the key.
        const auto vm = read_vm(directories_.run, options_.name);
        if (vm && vm->flag("agent")) co_await authorize_key();
    }

    /// Once for a user and a life of the VM: it takes a command in the guest.
    awaitable<void> authorize_key() {
        const auto marker = directories_.run / options_.name / "ssh-users";
        const auto known = read_file(marker).value_or("");
        const auto key = own_public_key(directories_, true);
        if (!key)
            throw Failure("there is no ssh-keygen to make a key", "apt-get install openssh-client");
        const auto line = options_.user + ' ' + *key + '\n';
        if (('\n' + known).find('\n' + line) != std::string::npos) co_return;
        auto service = connect_to(directories_.run / options_.name / "exec.sock", SOCK_SEQPACKET);
        if (!service) throw not_running(directories_, options_.name);
        auto command = guest_script(authorize, *key);
        if (options_.user != "root") command.user = options_.user;
        const auto answer =
            co_await run_in_guest(context_.get_executor(), std::move(*service), std::move(command));
        if (answer.exit_status != status::ok)
            throw Failure(fmt::format(
                "let qvm's key in for '{}': {}", options_.user,
                answer.err.empty() ? "it failed in the guest" : first_line(answer.err)));
        write_file(marker, known + line);
    }

    const Directories& directories_;
    const SshOptions& options_;
    asio::io_context context_{1};
    ControlClient control_;
    asio::steady_timer silence_;
    sockaddr_in server_{};
};

UniqueFd connect_to_server(const Directories& directories, const LivingVm& vm,
                           const sockaddr_in& server) {
    UniqueFd socket;
    const auto connect = [&] {
        socket.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (!socket ||
            ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&server), sizeof server) != 0)
            throw Failure("connect to the guest's port 22: " +
                          std::generic_category().message(errno));
    };
    if (vm.number("namespace_fd") <= 0)
        connect();
    else
        netns::Namespace{open_namespace(directories.run, vm)}.run(connect);
    return socket;
}

int serve_as_proxy(const Directories& directories, const SshOptions& options) {
    const auto server = Door{directories, options}.open();
    const auto vm = find_vm(directories, options.name);
    const auto socket = connect_to_server(directories, vm, server);
    if (!send_with_fds(STDOUT_FILENO, std::string(1, '\0'), {socket.get()}))
        throw Failure("hand the connection to ssh: " + std::generic_category().message(errno),
                      "--proxy is for ssh's ProxyCommand, with ProxyUseFdpass");
    return status::ok;
}

/// ssh_config(5), TOKENS.
std::string escape_tokens(std::string_view text) {
    return doubled(text, '%');
}

/// A variable that says where we keep things has to be there for ssh's ProxyCommand, too.
std::string proxy_command(const std::string& name) {
    std::string command;
    for (const char* variable : {"QVM_RUN_DIR", "QVM_DATA_DIR"})
        if (const char* value = std::getenv(variable); value != nullptr && *value != '\0')
            command += fmt::format("{}={} ", variable,
                                   shell_word(fs::absolute(value).lexically_normal().string()));
    if (!command.empty()) command = "env " + command;
    std::error_code error;
    const auto self = fs::read_symlink("/proc/self/exe", error);
    command += shell_word(error ? "qvm" : self.string());
    return escape_tokens(command) + " ssh --proxy %r@" + name;
}

using Settings = std::vector<std::pair<std::string, std::string>>;

/// Of ssh_config(5): the VM's own host keys, and nobody's else, so that nothing is asked and the
/// user's known_hosts stays as it is.
Settings ssh_settings(const Directories& directories, const std::string& name) {
    const auto quoted = [](const fs::path& path) {
        return '"' + escape_tokens(path.string()) + '"';
    };
    return {{"ProxyCommand", proxy_command(name)},
            {"ProxyUseFdpass", "yes"},
            {"IdentityFile", quoted(own_key_file(directories))},
            {"IdentitiesOnly", "yes"},
            {"HostKeyAlias", name},
            {"UserKnownHostsFile", quoted(directories.run / name / "known_hosts")},
            {"GlobalKnownHostsFile", "/dev/null"},
            {"StrictHostKeyChecking", "accept-new"},
            {"UpdateHostKeys", "no"},
            {"CheckHostIP", "no"},
            {"ControlPath", "none"},
            {"LogLevel", "ERROR"}};
}

[[noreturn]] void become_ssh(const Directories& directories, const SshOptions& options) {
    std::vector<std::string> words{"ssh", "-l", options.user};
    for (const auto& [key, value] : ssh_settings(directories, options.name)) {
        words.emplace_back("-o");
        words.push_back(key + "=" + value);
    }
    words.push_back(options.name);
    if (!options.command.empty()) words.emplace_back("--");  // what follows are no options of ssh
    words.insert(words.end(), options.command.begin(), options.command.end());
    const int error = become(words);
    throw Failure("start 'ssh': " + std::generic_category().message(error),
                  error == ENOENT ? "apt-get install openssh-client" : "");
}

}  // namespace

int ssh(const SshOptions& options) {
    const auto directories = find_directories();
    try {
        check_way(find_vm(directories, options.name));
        if (options.proxy) return serve_as_proxy(directories, options);
        Door{directories, options}.open();
        become_ssh(directories, options);
    } catch (const Failure&) {
        rethrow(std::current_exception(), fmt::format("ssh into '{}'", options.name));
    }
}

int ssh_config(const SshConfigOptions& options) {
    const auto directories = find_directories();
    const auto names = options.names.empty() ? living_vms(directories.run) : options.names;
    std::string text;
    for (const auto& name : names) {
        (void)find_vm(directories, name);
        text += fmt::format("Host {}\n    User root\n", name);
        for (const auto& [key, value] : ssh_settings(directories, name))
            text += fmt::format("    {} {}\n", key, value);
    }
    print(text);
    return status::ok;
}

}  // namespace qvm
