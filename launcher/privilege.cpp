#include "launcher/privilege.h"

#include <fmt/format.h>
#include <pwd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <optional>
#include <sstream>

#include "launcher/failure.h"
#include "launcher/host.h"
#include "launcher/process.h"
#include "launcher/unix_socket.h"
#include "netns/error.h"
#include "netns/user_namespace.h"

namespace qvm {

namespace {

/// A program that waits until this process is in its user namespace and then, from outside, maps
/// the user's ranges of ids there: who is inside may not.
class RangeMapper {
  public:
    /// Nothing where the host has no such programs, or the user no such ids.
    static std::optional<RangeMapper> start() {
        for (const char* program : {"getsubids", "newuidmap", "newgidmap"})
            if (!find_program(program)) return std::nullopt;
        const auto* account = ::getpwuid(::getuid());
        if (account == nullptr) return std::nullopt;
        const std::string name = account->pw_name;
        const auto uids = parse_id_ranges(run_tool({"getsubids", name}).out);
        const auto gids = parse_id_ranges(run_tool({"getsubids", "-g", name}).out);
        if (uids.empty() || gids.empty()) return std::nullopt;
        return RangeMapper{fmt::format("read -r _ && newuidmap {0} {1} && newgidmap {0} {2}",
                                       ::getpid(), id_map(::getuid(), uids),
                                       id_map(::getgid(), gids))};
    }

    /// Why it could not; empty where it did.
    std::string map() {
        words_.theirs.reset();
        const char go = '\n';
        if (::write(words_.ours.get(), &go, 1) != 1) return std::generic_category().message(errno);
        std::string text;
        std::array<char, 1024> buffer;
        for (ssize_t size; (size = ::read(words_.ours.get(), buffer.data(), buffer.size())) > 0;)
            text.append(buffer.data(), static_cast<std::size_t>(size));
        const auto status = child_->wait_blocking();
        if (status.signal == 0 && status.code == 0) return {};
        return text.empty() ? status.describe() : text.substr(0, text.find('\n'));
    }

  private:
    explicit RangeMapper(std::string script) : words_(make_socket_pair("map ranges of ids")) {
        SpawnSpec spec;
        spec.argv = {"sh", "-c", std::move(script)};
        spec.stdin_fd = words_.theirs.get();
        spec.stderr_fd = words_.theirs.get();
        child_.emplace(Child::spawn(spec));
    }

    SocketPair words_;  ///< its stdin and its stderr
    std::optional<Child> child_;
};

void make_user_namespace(const Report& debug) {
    const auto uid = ::getuid();
    const auto gid = ::getgid();
    auto ranges = RangeMapper::start();
    netns::create_user_namespace();
    if (ranges)
        if (const auto why = ranges->map(); !why.empty())
            debug("no ranges of ids in the user namespace: " + why);
    netns::map_to_root(uid, gid);
}

}  // namespace

std::vector<IdRange> parse_id_ranges(std::string_view text) {
    std::vector<IdRange> ranges;
    std::istringstream lines{std::string{text}};
    std::string number, owner;
    IdRange range;  // "0: alice 100000 65536"
    while (lines >> number >> owner >> range.first >> range.count)
        if (range.count > 0) ranges.push_back(range);
    return ranges;
}

std::string id_map(std::uint64_t own, const std::vector<IdRange>& ranges) {
    auto text = fmt::format("0 {} 1", own);
    std::uint64_t inside = 1;
    for (const auto& range : ranges) {
        text += fmt::format(" {} {} {}", inside, range.first, range.count);
        inside += range.count;
    }
    return text;
}

void enter_user_namespace(int network_namespace, const Report& debug) {
    const char* hint = "'qvm doctor' says what keeps it from that; or run qvm as root";
    try {
        if (network_namespace < 0)
            make_user_namespace(debug);
        else
            netns::join_user_namespace(network_namespace);
        if (!has_capabilities())  // a policy (AppArmor's) lets it be made and then forbids all
            throw Failure("make a user namespace: it has no capabilities", hint);
        netns::tolerate_setgroups();
    } catch (const netns::Error& error) {
        throw Failure(error.what(), hint);
    }
}

}  // namespace qvm
