#include "launcher/qemu_img.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <list>
#include <random>
#include <system_error>

#include "images/error.h"
#include "launcher/failure.h"
#include "launcher/host.h"
#include "launcher/process.h"

namespace qvm {

namespace json = boost::json;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t memory = 1 << 30;  // a thread's stack is 8 MiB, and it has up to 64
// A probe takes milliseconds.
constexpr auto probe_time = 10s;
constexpr auto probe_patience = 20s;
// What takes as long as the image is large; each percent is printed.
constexpr auto work_time = 2h;
constexpr auto work_patience = 10min;

// The child's numbers.
constexpr int rules_number = 3;
constexpr int first_file = 4;

std::string path_of(std::size_t file) {
    return fmt::format("/proc/self/fd/{}", first_file + static_cast<int>(file));
}

struct Work {
    std::vector<std::string> argv;  ///< with path_of() the files
    std::vector<int> reads;         ///< files 0, 1 and so on
    std::vector<int> writes = {};   ///< those behind them
    Limits limits = {};
    std::chrono::seconds patience = {};
    std::function<void(std::string_view)> on_output = {}, on_error = {};
};

/// 0, which is none, where it cannot be said.
std::uint32_t file_system_of(int fd) {
    struct statfs system {};
    return ::fstatfs(fd, &system) == 0 ? static_cast<std::uint32_t>(system.f_type) : 0;
}

bool is_readable_by_capability(int fd) {
    const auto type = file_system_of(fd);
    return type != 0 && !is_remote(type);
}

/// It can be lent: whose a file is, is kept, and counts.
bool has_owners(int fd) {
    constexpr std::array<std::uint32_t, 6> those{EXT4_SUPER_MAGIC,      XFS_SUPER_MAGIC,
                                                 BTRFS_SUPER_MAGIC,     F2FS_SUPER_MAGIC,
                                                 OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC};
    return std::ranges::find(those, file_system_of(fd)) != those.end();
}

/// As root, an id that is nobody's, where the files can be opened with that one, too.
std::optional<uid_t> id_for(const Work& work) {
    if (::geteuid() != 0 ||
        !has_capabilities({CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_DAC_READ_SEARCH}) ||
        !std::ranges::all_of(work.reads, is_readable_by_capability) ||
        !std::ranges::all_of(work.writes, has_owners))
        return std::nullopt;
    return throw_away_id(std::random_device{}());
}

/// A file (borrowed) that is somebody else's while this lives.
class LentFile {
  public:
    LentFile(int fd, uid_t to) : fd_(fd) {
        struct stat status {};
        if (::fstat(fd, &status) != 0 || ::fchown(fd, to, no_group) != 0)
            throw std::system_error(errno, std::generic_category());
        owner_ = status.st_uid;
    }
    LentFile(const LentFile&) = delete;
    LentFile& operator=(const LentFile&) = delete;
    ~LentFile() { (void)!::fchown(fd_, owner_, no_group); }

  private:
    static constexpr auto no_group = static_cast<gid_t>(-1);
    int fd_;
    uid_t owner_ = 0;
};

ToolResult run_qemu_img(const Work& work) {
    Tool tool{.argv = work.argv,
              .patience = work.patience,
              .on_output = work.on_output,
              .on_error = work.on_error};
    auto& confinement = tool.confinement.emplace();
    confinement.limits = work.limits;
    confinement.keeps_to_itself = true;
    confinement.kept_capability = CAP_DAC_OVERRIDE;
    std::list<LentFile> lent;
    if (const auto id = id_for(work)) {
        confinement.uid = confinement.gid = *id;
        confinement.groups.emplace();
        confinement.kept_capability = CAP_DAC_READ_SEARCH;
        for (const int fd : work.writes) lent.emplace_back(fd, *id);
    }
    std::error_code error;
    const auto program = std::filesystem::canonical(find_qemu_img(), error);
    const auto rules = allowed_opens(program, work.reads, work.writes);
    if (rules) {
        confinement.allowed_opens = rules_number;
        tool.inherit.push_back({rules.get(), rules_number});
    }
    int number = first_file;
    for (const int fd : work.reads) tool.inherit.push_back({fd, number++});
    for (const int fd : work.writes) tool.inherit.push_back({fd, number++});
    auto result = run_tool(tool);
    if (result.end == ToolResult::End::impatience)
        throw Failure("qemu-img made no headway and was ended");
    if (result.status.signal != 0)
        throw Failure("qemu-img was ended by " + result.status.describe());
    return result;
}

/// Says why it failed.
[[noreturn]] void fail(const ToolResult& result) {
    // What follows from that it may say first.
    for (const int error : {ENOSPC, EDQUOT, EMFILE, ENFILE})
        if (result.err.find(std::generic_category().message(error)) != std::string::npos)
            throw std::system_error(error, std::generic_category());
    throw images::Error(images::probe_failure(result.err));
}

json::object node_of(const ImageChain& chain, std::size_t number) {
    json::object node{
        {"driver", chain.nodes[number].format},
        {"file", json::object{{"driver", "file"}, {"filename", path_of(number)}}},
    };
    const bool lowest = number + 1 == chain.nodes.size();
    if (!lowest) node["backing"] = node_of(chain, number + 1);
    // Whatever it says itself; all that QEMU knows to have something beneath them.
    constexpr std::array<std::string_view, 3> layered{"qcow2", "qed", "vmdk"};
    if (lowest && std::ranges::find(layered, chain.nodes[number].format) != layered.end())
        node["backing"] = nullptr;
    return node;
}

/// What qemu-img takes in place of a file's name.
std::string description_of(const ImageChain& chain) {
    return "json:" + json::serialize(node_of(chain, 0));
}

/// The last percentage in what qemu-img printed: "    (12.50/100%)\r".
std::optional<double> percentage_in(std::string_view text) {
    const auto end = text.rfind("/100%)");
    if (end == text.npos) return std::nullopt;
    const auto begin = text.rfind('(', end);
    if (begin == text.npos) return std::nullopt;
    double value = 0;
    std::from_chars(text.data() + begin + 1, text.data() + end, value);
    return value;
}

}  // namespace

bool is_remote(std::uint32_t file_system) {
    constexpr std::uint32_t gpfs = 0x47504653;
    constexpr std::uint32_t lustre = 0x0bd00bd0;
    constexpr std::uint32_t vboxsf = 0x786f4256;
    constexpr std::array<std::uint32_t, 14> remote{NFS_SUPER_MAGIC,
                                                   SMB_SUPER_MAGIC,
                                                   CIFS_SUPER_MAGIC,
                                                   SMB2_SUPER_MAGIC,
                                                   FUSE_SUPER_MAGIC,
                                                   V9FS_MAGIC,
                                                   AFS_SUPER_MAGIC,
                                                   AFS_FS_MAGIC,
                                                   CEPH_SUPER_MAGIC,
                                                   CODA_SUPER_MAGIC,
                                                   OCFS2_SUPER_MAGIC,
                                                   gpfs,
                                                   lustre,
                                                   vboxsf};
    return std::ranges::find(remote, file_system) != remote.end();
}

std::string find_qemu_img() {
    const auto program = find_program("qemu-img");
    if (!program) throw missing_program("qemu-img", "qemu-utils");
    return *program;
}

images::ImageInfo probe_image(int fd, const std::string& format) {
    const auto result = run_qemu_img({.argv = images::probe_command(format, path_of(0)),
                                      .reads = {fd},
                                      .limits = {memory, probe_time, 0},
                                      .patience = probe_patience});
    if (result.status.code != 0) fail(result);
    return images::parse_probe(result.out);
}

void check_clusters(int fd, const std::string& format) {
    const bool is_qcow2 = format == "qcow2";
    const images::Error damage{"damaged image: qemu-img check finds errors",
                               is_qcow2 ? "qemu-img check -r all FILE, on a copy" : ""};
    // A line for each entry of a table; one says enough, and there may be billions.
    const auto find_damage = [&](std::string_view piece) {
        if (is_qcow2 && piece.find("ERROR") != piece.npos && piece.find("I/O error") == piece.npos)
            throw damage;
    };
    const auto result =
        run_qemu_img({.argv = {"qemu-img", "check", description_of({{{fd, format}}})},
                      .reads = {fd},
                      .limits = {memory, work_time, 0},
                      .patience = work_patience,
                      .on_error = find_damage});
    // Exit statuses; see qemu-img(1).
    constexpr int damaged = 2;
    constexpr int leaked = 3;  // clusters that nobody refers to: a waste of space
    constexpr int cannot = 63;
    switch (result.status.code) {
        case 0:
        case leaked:
        case cannot:
            return;
        case damaged:
            throw damage;
        default:
            fail(result);
    }
}

void convert_image(const ImageChain& from, int to, const images::Headway& headway) {
    Work work{.argv = {"qemu-img", "convert", "-p", "-O", "qcow2", description_of(from),
                       path_of(from.nodes.size())},
              .reads = {},
              .writes = {to},
              .limits = {memory, work_time, RLIM_INFINITY},
              .patience = work_patience};
    for (const auto& node : from.nodes) work.reads.push_back(node.fd);
    work.on_output = [&](std::string_view piece) {
        if (const auto percentage = percentage_in(piece); percentage && headway)
            headway(*percentage / 100);
    };
    const auto result = run_qemu_img(work);
    if (result.status.code != 0) fail(result);
}

}  // namespace qvm
