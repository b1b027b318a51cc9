// qvm cp: files and trees to and from a running guest, as a tar stream over a command there.

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <filesystem>
#include <optional>

#include "launcher/commands.h"
#include "launcher/control_client.h"
#include "launcher/guest_process.h"
#include "launcher/guest_script.h"
#include "launcher/memory_file.h"
#include "launcher/process.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto progress_delay = 1s;
constexpr auto progress_pause = 200ms;
constexpr double mib = 1024 * 1024;

/// Parameter: a path. What it is: "directory" or "file".
constexpr const char* look = R"(cd /
if [ -L "$1" ]; then echo file
elif [ -d "$1" ]; then echo directory
elif [ -e "$1" ]; then echo file
else echo 'No such file or directory' >&2; exit 1
fi)";

/// Parameters: a path, and what it is.
constexpr const char* pack = R"(cd /
[ "$2" = directory ] && cd "$1" && exec tar -cf - .
cd "${1%/*}/" && exec tar -cf - "./${1##*/}")";

/// Parameters: the path, the source's name, and what it is. A file that is there by that name is
/// replaced as a whole or not at all.
constexpr const char* unpack = R"(cd /
umask 0
path=$1
[ ! -d "$path" ] || [ "$3" = contents ] || path=$path/$2
if [ "$3" != file ]; then
    [ -d "$path" ] || mkdir "$path" || exit
    cd "$path" && exec tar -xof -
fi
case $path in */) echo 'Not a directory' >&2; exit 1 ;; esac
new=$(mktemp -d "${path%/*}/.qvm.XXXXXX") || exit
(cd "$new" && exec tar -xof -) && mv -f "$new/$2" "$path"
status=$?
rm -rf "$new"
exit $status)";

std::string reason(int error) {
    return std::generic_category().message(error);
}

struct Pipe {
    Pipe() {
        std::array<int, 2> ends;
        if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Failure("make a pipe: " + reason(errno));
        read.reset(ends[0]);
        write.reset(ends[1]);
    }
    UniqueFd read, write;
};

/// A new directory beside a file that is to be; it goes with this object.
class Staging {
  public:
    explicit Staging(const fs::path& file) {
        auto name = (fs::absolute(file).parent_path() / ".qvm.XXXXXX").string();
        if (::mkdtemp(name.data()) == nullptr)
            throw Failure(fmt::format("'{}': {}", file.string(), reason(errno)));
        path_ = name;
    }
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;
    ~Staging() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    [[nodiscard]] const fs::path& path() const noexcept { return path_; }

  private:
    fs::path path_;
};

/// "src/." and "." mean what is in the directory, as docker has it.
bool means_contents(const std::string& path) {
    return path == "." || path.ends_with("/.");
}

/// Without "." and the slash at the end.
fs::path plain_path(const std::string& path) {
    auto plain = fs::absolute(path).lexically_normal();
    return plain.has_filename() ? plain : plain.parent_path();
}

/// A path of the guest from its root, so that it does not look like an option.
std::string guest_path(const std::string& path) {
    return path.starts_with('/') ? path : "/" + path;
}

/// The host's tar, with its ends of pipes.
class Tar {
  public:
    Tar(std::vector<std::string> argv, int in, int out)
        : child_(Child::spawn({.argv = std::move(argv),
                               .stdin_fd = in,
                               .stdout_fd = out,
                               .stderr_fd = said_.fd()})) {}

    awaitable<void> end() {
        const auto status = co_await child_.wait();
        if (status.code == 0 && status.signal == 0) co_return;
        const auto why = first_line(said_.text());
        throw Failure(why.empty() ? "tar: " + status.describe() : why);
    }

  private:
    MemoryFile said_;
    Child child_;
};

std::vector<std::string> pack_command(const fs::path& directory, const std::string& name) {
    return {"tar", "-C", directory.string(), "-cf", "-", "--", name};
}

/// Nothing that a guest packed gets an owner, a set-user-ID bit or a device's number here.
std::vector<std::string> unpack_command(const fs::path& directory) {
    std::vector<std::string> words{"sh", "-c", R"(umask 0; exec "$@")", "sh"};
    if (::geteuid() == 0) words.insert(words.end(), {"setpriv", "--bounding-set=-mknod"});
    words.insert(words.end(), {"tar", "-xf", "-", "--no-same-owner", "--no-same-permissions", "-C",
                               directory.string()});
    return words;
}

class Copy {
  public:
    explicit Copy(const CopyOptions& options)
        : options_(options),
          vm_(options.from.vm ? *options.from.vm : *options.to.vm),
          directories_(find_directories()),
          control_(context_.get_executor(), directories_, vm_) {
        for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) signals_.add(number);
    }

    int operator()() {
        asio::co_spawn(context_, run(), [this](std::exception_ptr failure) {
            failure_ = failure;
            context_.stop();
        });
        asio::co_spawn(context_, watch_signals(), asio::detached);
        if (!options_.quiet && ::isatty(STDERR_FILENO) != 0)
            asio::co_spawn(context_, show_progress(), asio::detached);
        context_.run();
        if (progress_shown_) std::fputs("\r\033[K", stderr);
        if (failure_)
            rethrow(failure_, fmt::format("copy '{}' to '{}'", to_string(options_.from),
                                          to_string(options_.to)));
        return exit_status_;
    }

  private:
    awaitable<void> run() {
        co_await control_.ready();
        if (options_.to.vm)
            co_await upload();
        else
            co_await download();
    }

    awaitable<void> upload() {
        const bool contents = means_contents(options_.from.path);
        const auto source = plain_path(options_.from.path);
        std::error_code error;
        const auto status = fs::symlink_status(source, error);
        if (!fs::exists(status)) throw Failure(reason(error ? error.value() : ENOENT));
        const bool directory = fs::is_directory(status);
        const std::string kind = contents ? "contents" : directory ? "directory" : "file";
        auto command =
            guest_script(unpack, guest_path(options_.to.path), source.filename().string(), kind);
        Pipe pipe;
        Tar tar{directory ? pack_command(source, ".")
                          : pack_command(source.parent_path(), source.filename()),
                -1, pipe.write.get()};
        pipe.write.reset();
        co_await in_guest(std::move(command), pipe.read.get(), -1);
        co_await tar.end();
    }

    awaitable<void> download() {
        const bool contents = means_contents(options_.from.path);
        const auto given = fs::path{guest_path(options_.from.path)}.lexically_normal();
        const auto source = given.has_filename() ? given : given.parent_path();
        MemoryFile kind;
        auto command = guest_script(look, source.string());
        co_await in_guest(std::move(command), -1, kind.fd());
        const bool directory = first_line(kind.text()) == "directory";
        command = guest_script(pack, source.string(), first_line(kind.text()));
        fs::path target{options_.to.path};
        if (fs::is_directory(target) && !(directory && contents)) target /= source.filename();
        if (directory) {
            if (!fs::is_directory(target) && ::mkdir(target.c_str(), 0777) != 0)
                throw Failure(fmt::format("'{}': {}", target.string(), reason(errno)));
            co_await fetch(std::move(command), target);
            co_return;
        }
        if (!target.has_filename())
            throw Failure(fmt::format("'{}': {}", target.string(), reason(ENOTDIR)));
        const Staging staging{target};
        co_await fetch(std::move(command), staging.path());
        const auto file = staging.path() / source.filename();
        if (::rename(file.c_str(), target.c_str()) != 0)
            throw Failure(fmt::format("'{}': {}", target.string(), reason(errno)));
    }

    awaitable<void> fetch(GuestCommand command, const fs::path& directory) {
        Pipe pipe;
        Tar tar{unpack_command(directory), pipe.read.get(), -1};
        pipe.read.reset();
        co_await in_guest(std::move(command), -1, pipe.write.get());
        pipe.write.reset();
        co_await tar.end();
    }

    void ask(const GuestCommand& command, int in, int out, int err) {
        auto service = connect_to(directories_.run / vm_ / "exec.sock", SOCK_SEQPACKET);
        if (!service) throw not_running(directories_, vm_);
        const auto silent = [](const std::string&) {};
        process_.emplace(context_.get_executor(), std::move(*service), command, in >= 0,
                         GuestNotes{.waiting = silent, .note = silent},
                         GuestStreams{.in = in, .out = out, .err = err});
    }

    /// Throws Failure with what the script says of its failure.
    awaitable<void> in_guest(GuestCommand command, int in, int out) {
        MemoryFile nowhere, said;
        ask(std::move(command), in, out >= 0 ? out : nowhere.fd(), said.fd());
        const int status = co_await process_->end();
        transferred_ += process_->transferred();
        process_.reset();
        if (status != 0 && status != status::signalled + SIGPIPE)
            throw Failure(fmt::format("in the guest: {}", first_line(said.text())));
    }

    awaitable<void> watch_signals() {
        exit_status_ = status::signalled + co_await signals_.async_wait(asio::use_awaitable);
        context_.stop();
    }

    awaitable<void> show_progress() {
        const auto begin = std::chrono::steady_clock::now();
        asio::steady_timer timer{context_, progress_delay};
        for (;;) {
            co_await timer.async_wait(asio::use_awaitable);
            const auto bytes =
                static_cast<double>(transferred_ + (process_ ? process_->transferred() : 0));
            const std::chrono::duration<double> since = std::chrono::steady_clock::now() - begin;
            const auto line = fmt::format("\r\033[Kqvm: {:.1f} MiB, {:.1f} MiB/s", bytes / mib,
                                          bytes / mib / since.count());
            std::fputs(line.c_str(), stderr);
            progress_shown_ = true;
            timer.expires_after(progress_pause);
        }
    }

    const CopyOptions& options_;
    std::string vm_;
    asio::io_context context_{1};
    Directories directories_;
    ControlClient control_;
    asio::signal_set signals_{context_};
    std::optional<GuestProcess> process_;
    std::uint64_t transferred_ = 0;  ///< bytes, by those before
    bool progress_shown_ = false;
    std::exception_ptr failure_;
    int exit_status_ = status::ok;
};

}  // namespace

int copy(const CopyOptions& options) {
    return Copy{options}();
}

}  // namespace qvm
