#include "launcher/audit.h"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <map>
#include <sstream>
#include <thread>

#include "launcher/failure.h"
#include "launcher/group.h"
#include "launcher/vm_state.h"
#include "netns/error.h"
#include "netns/forwarding.h"

namespace qvm {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

using Lines = std::vector<std::string>;

constexpr auto patience = 2s;  // with the kernel
constexpr auto pause = 20ms;   // between two looks

std::vector<fs::path> entries_of(const fs::path& directory) {
    std::vector<fs::path> entries;
    std::error_code error;
    for (fs::directory_iterator entry{directory, error}, end; !error && entry != end;
         entry.increment(error))
        entries.push_back(entry->path());
    return entries;
}

Lines mounts() {
    Lines lines;
    std::istringstream text{read_file("/proc/self/mountinfo").value_or("")};
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
}

/// By process id, what it runs. Also those that children of ours left to us.
std::map<std::string, std::string> child_processes() {
    while (::waitpid(-1, nullptr, WNOHANG) > 0) {
    }
    std::map<std::string, std::string> children_now;
    for (const auto& task : entries_of("/proc/self/task")) {
        std::istringstream children{read_file(task / "children").value_or("")};
        for (std::string pid; children >> pid;) {
            const auto name = read_file(fmt::format("/proc/{}/comm", pid)).value_or("");
            children_now[pid] = name.substr(0, name.find('\n'));
        }
    }
    return children_now;
}

/// The one that lists them is closed by the time it would be read. Without paths: a log that is
/// rotated is the same file.
Lines descriptors() {
    Lines lines;
    for (const auto& entry : entries_of("/proc/self/fd")) {
        std::error_code gone;
        const auto what = fs::read_symlink(entry, gone).string();
        if (gone) continue;
        const auto kind = what.starts_with('/') ? "file" : what.substr(0, what.find(":["));
        lines.push_back(fmt::format("{} {}", entry.filename().string(), kind));
    }
    return lines;
}

Lines names_in(const fs::path& directory) {
    Lines names;
    for (const auto& entry : entries_of(directory)) names.push_back(entry.filename().string());
    return names;
}

bool is_there(const fs::path& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

Lines sorted(Lines lines) {
    std::sort(lines.begin(), lines.end());
    return lines;
}

Lines without(const Lines& all, const Lines& others) {
    const auto from = sorted(all);
    const auto less = sorted(others);
    Lines lines;
    std::set_difference(from.begin(), from.end(), less.begin(), less.end(),
                        std::back_inserter(lines));
    return lines;
}

Lines lines_of(const netns::HostPicture& picture, const std::string& section) {
    const auto found = std::find_if(picture.begin(), picture.end(),
                                    [&](const auto& each) { return each.name == section; });
    return found == picture.end() ? Lines{} : found->lines;
}

}  // namespace

std::vector<std::string> difference(const netns::HostPicture& before,
                                    const netns::HostPicture& after) {
    Lines result;
    for (const auto& section : after) {
        const auto old_lines = lines_of(before, section.name);
        const auto& new_lines = section.lines;
        for (const auto& line : without(old_lines, new_lines))
            result.push_back(fmt::format("- {} {}", section.name, line));
        for (const auto& line : without(new_lines, old_lines))
            result.push_back(fmt::format("+ {} {}", section.name, line));
    }
    return result;
}

Audit::Audit(Directories directories, const RunOptions& options)
    : directories_(std::move(directories)), name_(options.name), group_(options.vm.group) {
    ::prctl(PR_GET_CHILD_SUBREAPER, &was_subreaper_);
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    // By id: one that was just forked is about to run something else.
    for (const auto& [pid, name] : child_processes()) inherited_.insert(pid);
    before_ = look();
}

Audit::~Audit() {
    ::prctl(PR_SET_CHILD_SUBREAPER, was_subreaper_);
}

void Audit::expect(const VmPlan& plan) {
    name_ = plan.name;
    if (plan.network) network_ = plan.network->id;
}

std::vector<std::string> Audit::differences() {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    for (;;) {
        auto lines = difference(before_, look());
        if (lines.empty() || std::chrono::steady_clock::now() > deadline) return lines;
        std::this_thread::sleep_for(pause);
    }
}

netns::HostPicture Audit::look() const {
    const auto own = network_ && !is_network_shared() ? *network_ : std::string{};
    netns::HostPicture picture;
    try {
        // As every command does first: one that was killed is not this run's doing.
        netns::sweep_forwarding(directories_.forwarding());
        picture = netns::read_host_picture(directories_.forwarding(), [&](std::string_view name) {
            return netns::is_of_another_network(name, own);
        });
    } catch (const netns::Error& error) {
        throw Failure(fmt::format("--audit: {}", error.what()));
    }
    picture.push_back({"mount", mounts()});
    Lines children;
    for (const auto& [pid, name] : child_processes())
        if (!inherited_.contains(pid)) children.push_back(fmt::format("{} {}", pid, name));
    picture.push_back({"child process", std::move(children)});
    picture.push_back({"descriptor", descriptors()});
    picture.push_back({"run directory", left_in_run_directory()});
    picture.push_back({"cache directory", names_in(directories_.cache)});
    return picture;
}

/// Whether living members of our group have it still.
bool Audit::is_network_shared() const {
    const auto vms = read_vms(directories_.run);
    return std::any_of(vms.begin(), vms.end(),
                       [this](const auto& vm) { return vm.text("net.id") == *network_; });
}

/// What is ours and in nobody's use: the next VM of that name may be there already.
std::vector<std::string> Audit::left_in_run_directory() const {
    Lines left;
    const auto& run = directories_.run;
    if (name_ && is_there(run / *name_) && !supervisor_of(run, *name_)) left.push_back(*name_);
    // Who starts or ends in it has the leader's lock before it is a guest, and after.
    if (group_ && group_guests(run, *group_).empty() &&
        try_lock_existing(directories_.groups() / *group_ / "leader"))
        left.push_back(fmt::format("group {}", *group_));
    return left;
}

}  // namespace qvm
