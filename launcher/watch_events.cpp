// qvm events: one stream for all VMs. Supervisors send what happens to every listener; that one of
// them was killed, which nobody can send, is seen by its pidfd.

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <boost/json.hpp>
#include <map>
#include <optional>

#include "launcher/commands.h"
#include "launcher/events.h"
#include "launcher/failure.h"
#include "launcher/json_text.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/sweep.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

constexpr std::size_t largest_event = 65536;
constexpr int patience_ms = 1000;  // with a sender that was stopped between two calls

/// A socket with a name in the listeners' directory, which goes with it.
class Listener {
  public:
    explicit Listener(const Directories& directories)
        : directories_(directories),
          path_(directories.listeners() / fmt::format("{}.sock", ::getpid())) {
        make_private_directory(directories.run);
        const auto guard = lock_directory(directories.listeners());
        socket_ = listen_on(path_, event_socket);
    }
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    ~Listener() {
        ::unlink(path_.c_str());
        try {
            sweep_listeners(directories_);  // the directory, when it was the last
        } catch (const Failure&) {
            // For the next.
        }
    }
    [[nodiscard]] int fd() const { return socket_.get(); }

    /// The next event; empty from one who only asked whether we live. Nothing where there is none.
    std::optional<std::string> receive() {
        const UniqueFd sender{
            ::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
        if (!sender) return std::nullopt;
        // Whoever connects sends at once, or never.
        pollfd news{sender.get(), POLLIN, 0};
        ::poll(&news, 1, patience_ms);
        std::string text(largest_event, '\0');
        const auto size = ::recv(sender.get(), text.data(), text.size(), 0);
        text.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
        return text;
    }

  private:
    const Directories& directories_;
    fs::path path_;
    UniqueFd socket_;
};

/// "2026-01-31T12:00:00Z  web  stopped  exit_status=0"
std::string in_words(const json::object& event) {
    auto line = fmt::format("{}  {}  {}", text_in(event, "time"), text_in(event, "name"),
                            text_in(event, "event"));
    for (const auto& [key, value] : event) {
        if (key == "time" || key == "name" || key == "event") continue;
        if (value.is_string() && value.get_string().empty()) continue;
        line += fmt::format("  {}={}", std::string{key}, json::serialize(value));
    }
    return line;
}

class Watch {
  public:
    Watch(const Directories& directories, bool as_json)
        : directories_(directories), as_json_(as_json), listener_(directories) {
        sigset_t ends;
        ::sigemptyset(&ends);
        for (const int number : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&ends, number);
        ::sigprocmask(SIG_BLOCK, &ends, nullptr);
        signals_.reset(::signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK));
        for (const auto& name : living_vms(directories_.run)) watch(name);
    }

    /// Until a signal; its exit status.
    int operator()() {
        for (;;) {
            // Of stdout, only that its reader is gone.
            std::vector<pollfd> fds{
                {listener_.fd(), POLLIN, 0}, {signals_.get(), POLLIN, 0}, {STDOUT_FILENO, 0, 0}};
            for (const auto& [name, pidfd] : supervisors_) fds.push_back({pidfd.get(), POLLIN, 0});
            ::poll(fds.data(), fds.size(), -1);
            while (const auto event = listener_.receive()) show(*event);
            if (fds[1].revents != 0) return signalled();
            if (fds[2].revents != 0) return status::signalled + SIGPIPE;
            bury(fds);
        }
    }

  private:
    void watch(const std::string& name) {
        const auto pid = supervisor_of(directories_.run, name);
        if (!pid) return;
        UniqueFd pidfd{static_cast<int>(::syscall(SYS_pidfd_open, *pid, 0U))};
        if (pidfd) supervisors_[name] = std::move(pidfd);
    }

    void show(const std::string& text) {
        boost::system::error_code error;
        const auto value = json::parse(text, error);
        const auto* event = value.if_object();
        if (error || event == nullptr) return;
        print((as_json_ ? text : in_words(*event)) + "\n");
        const auto* name = event->if_contains("name");
        const auto* what = event->if_contains("event");
        if (name == nullptr || what == nullptr || !name->is_string()) return;
        const std::string vm{name->get_string()};
        if (*what == "stopped" || *what == "died")
            supervisors_.erase(vm);
        else if (*what == "started")
            watch(vm);
    }

    /// Whoever is gone without a word was killed: the sweep says so, to us as well.
    void bury(const std::vector<pollfd>& fds) {
        bool gone = false;
        for (std::size_t i = 3; i < fds.size(); ++i) {
            if (fds[i].revents == 0) continue;
            gone = true;
            std::erase_if(supervisors_,
                          [&](const auto& item) { return item.second.get() == fds[i].fd; });
        }
        if (gone) sweep(directories_);
    }

    int signalled() {
        signalfd_siginfo info{};
        const auto size = ::read(signals_.get(), &info, sizeof info);
        return status::signalled + (size == sizeof info ? static_cast<int>(info.ssi_signo) : 0);
    }

    const Directories& directories_;
    bool as_json_;
    Listener listener_;
    UniqueFd signals_;
    std::map<std::string, UniqueFd> supervisors_;  ///< pidfds
};

}  // namespace

int events(const EventsOptions& options) {
    const auto directories = find_directories();
    raise_descriptor_limit();  // one for each VM
    return Watch{directories, options.json}();
}

}  // namespace qvm
