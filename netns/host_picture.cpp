#include "netns/host_picture.h"

#include <arpa/inet.h>  // for its netinet/in.h: linux/in.h minds who comes first
#include <fcntl.h>
#include <fmt/format.h>
#include <libmnl/libmnl.h>
#include <libnftnl/common.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/route/rule.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <sstream>

#include "netns/attributes.h"
#include "netns/error.h"
#include "netns/forwarding.h"
#include "netns/route_socket.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

namespace {

namespace fs = std::filesystem;

using MnlSocket = std::unique_ptr<mnl_socket, Deleter<mnl_socket_close>>;
using Lines = std::vector<std::string>;

constexpr std::array families{AF_INET, AF_INET6};

std::string text_of(const nl_addr* address) {
    std::array<char, 128> text{};
    return nl_addr2str(address, text.data(), text.size());
}

// --- rtnetlink ----------------------------------------------------------------------------------

/// Dumps of one socket, as lines.
class RouteReader {
  public:
    explicit RouteReader(const IsOthers& is_others) : is_others_(is_others) {}

    /// To be read first: the others name interfaces by it.
    Lines links() {
        nl_cache* raw = nullptr;
        const int error = rtnl_link_alloc_cache(socket_.get(), AF_UNSPEC, &raw);
        const auto cache = made(error, raw, "links");
        for_each<rtnl_link>(cache, [&](rtnl_link* link) {
            names_[rtnl_link_get_ifindex(link)] = rtnl_link_get_name(link);
        });
        Lines lines;
        for_each<rtnl_link>(cache, [&](rtnl_link* link) {
            if (!is_others_(rtnl_link_get_name(link))) lines.push_back(line_of(link));
        });
        return lines;
    }

    Lines addresses() {
        Lines lines;
        for (const int family : families) {
            nl_cache* raw = nullptr;
            const int error = alloc_address_cache(socket_.get(), family, &raw);
            for_each<rtnl_addr>(made(error, raw, "addresses"), [&](rtnl_addr* address) {
                const auto device = device_of(rtnl_addr_get_ifindex(address));
                if (rtnl_addr_get_family(address) == family && device)
                    lines.push_back(line_of(address) + *device);
            });
        }
        return lines;
    }

    Lines routes() {
        Lines lines;
        for (const int family : families) {
            nl_cache* raw = nullptr;
            const int error = rtnl_route_alloc_cache(socket_.get(), family, 0, &raw);
            for_each<rtnl_route>(made(error, raw, "routes"), [&](rtnl_route* route) {
                const bool cached = (rtnl_route_get_flags(route) & RTM_F_CLONED) != 0;
                if (cached || rtnl_route_get_family(route) != family) return;
                if (const auto hops = hops_of(route)) lines.push_back(line_of(route) + *hops);
            });
        }
        return lines;
    }

    Lines rules() {
        Lines lines;
        for (const int family : families) {
            nl_cache* raw = nullptr;
            const int error = rtnl_rule_alloc_cache(socket_.get(), family, &raw);
            for_each<rtnl_rule>(made(error, raw, "policy rules"), [&](rtnl_rule* rule) {
                if (rtnl_rule_get_family(rule) == family) lines.push_back(line_of(rule));
            });
        }
        return lines;
    }

  private:
    /// An empty cache where the kernel has none of that.
    static NlCache made(int error, nl_cache* raw, const char* what) {
        if (error == -NLE_OPNOTSUPP || error == -NLE_AF_NOSUPPORT) return nullptr;
        if (error < 0) throw Error(fmt::format("read the host's {}", what), nl_geterror(error));
        return NlCache{raw};
    }

    /// Nothing where there is no such interface by now.
    std::optional<std::string> name_of(int index) {
        if (const auto known = names_.find(index); known != names_.end()) return known->second;
        std::array<char, IFNAMSIZ> name{};
        if (::if_indextoname(static_cast<unsigned>(index), name.data()) == nullptr)
            return std::nullopt;
        return names_[index] = name.data();
    }

    /// " dev NAME"; nothing where that is another's, or went since: so did what hung on it.
    std::optional<std::string> device_of(int index) {
        if (index == 0) return "";
        const auto name = name_of(index);
        if (!name || is_others_(*name)) return std::nullopt;
        return " dev " + *name;
    }

    std::string line_of(rtnl_link* link) {
        auto line =
            fmt::format("{} index {}", rtnl_link_get_name(link), rtnl_link_get_ifindex(link));
        if (const auto* kind = rtnl_link_get_type(link)) line += fmt::format(" {}", kind);
        line += fmt::format(" mtu {}", rtnl_link_get_mtu(link));
        if (const int master = rtnl_link_get_master(link))
            line += " master " + name_of(master).value_or(std::to_string(master));
        if ((rtnl_link_get_flags(link) & IFF_UP) != 0) line += " up";
        return line;
    }

    static std::string line_of(rtnl_addr* address) {
        auto line = text_of(rtnl_addr_get_local(address));
        if (const auto* peer = rtnl_addr_get_peer(address)) line += " peer " + text_of(peer);
        return line;
    }

    static std::string line_of(rtnl_route* route) {
        std::array<char, 64> text{};
        auto* destination = rtnl_route_get_dst(route);
        const bool whole = destination == nullptr || nl_addr_get_prefixlen(destination) == 0;
        auto line = fmt::format("{} {}", rtnl_route_get_family(route) == AF_INET ? "ip" : "ip6",
                                whole ? "default" : text_of(destination));
        line += fmt::format(" {}",
                            nl_rtntype2str(rtnl_route_get_type(route), text.data(), text.size()));
        line += fmt::format(" table {}",
                            rtnl_route_table2str(static_cast<int>(rtnl_route_get_table(route)),
                                                 text.data(), text.size()));
        line += fmt::format(" metric {}", rtnl_route_get_priority(route));
        if (const auto tos = rtnl_route_get_tos(route)) line += fmt::format(" tos {:#x}", tos);
        if (auto* source = rtnl_route_get_src(route)) line += " from " + text_of(source);
        if (auto* source = rtnl_route_get_pref_src(route)) line += " src " + text_of(source);
        return line;
    }

    /// Nothing where one of them is not to be shown.
    std::optional<std::string> hops_of(rtnl_route* route) {
        std::string text;
        for (int i = 0; i < rtnl_route_get_nnexthops(route); ++i) {
            auto* hop = rtnl_route_nexthop_n(route, i);
            const auto device = device_of(rtnl_route_nh_get_ifindex(hop));
            if (!device) return std::nullopt;
            auto* gateway = rtnl_route_nh_get_gateway(hop);
            if (gateway == nullptr) gateway = rtnl_route_nh_get_via(hop);
            if (gateway != nullptr) text += " via " + text_of(gateway);
            text += *device;
        }
        return text;
    }

    static std::string line_of(rtnl_rule* rule) {
        std::array<char, 512> text{};
        nl_dump_params how{};
        how.dp_type = NL_DUMP_LINE;
        how.dp_buf = text.data();
        how.dp_buflen = text.size();
        nl_object_dump(reinterpret_cast<nl_object*>(rule), &how);
        std::string line{rtnl_rule_get_family(rule) == AF_INET ? "ip" : "ip6"};
        std::istringstream words{text.data()};  // it has columns
        for (std::string word; words >> word;) line += ' ' + word;
        return line;
    }

    const IsOthers& is_others_;
    RouteSocket socket_;
    std::map<int, std::string> names_;
};

// --- nftables -----------------------------------------------------------------------------------

/// What nf_tables dumps of one kind, and the attributes of which a line is made. All kinds have
/// handles, which are given once; what a rule says is not looked at.
struct NftKind {
    const char* name;
    std::uint16_t dump;
    std::uint16_t table;
    std::uint16_t within;        ///< its own name; a rule's chain
    std::uint16_t handle;        ///< 64 bits, big-endian
    const char* setting;         ///< what may change while the handle stays
    std::uint16_t setting_type;  ///< 32 bits, big-endian
};

constexpr std::array<NftKind, 6> nft_kinds{{
    {"table", NFT_MSG_GETTABLE, NFTA_TABLE_NAME, 0, NFTA_TABLE_HANDLE, "flags", NFTA_TABLE_FLAGS},
    {"chain", NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HANDLE, "policy",
     NFTA_CHAIN_POLICY},
    {"rule", NFT_MSG_GETRULE, NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, "", 0},
    {"set", NFT_MSG_GETSET, NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_HANDLE, "", 0},
    {"object", NFT_MSG_GETOBJ, NFTA_OBJ_TABLE, NFTA_OBJ_NAME, NFTA_OBJ_HANDLE, "", 0},
    {"flowtable", NFT_MSG_GETFLOWTABLE, NFTA_FLOWTABLE_TABLE, NFTA_FLOWTABLE_NAME,
     NFTA_FLOWTABLE_HANDLE, "", 0},
}};

std::string family_name(unsigned family) {
    switch (family) {
        case NFPROTO_INET:
            return "inet";
        case NFPROTO_IPV4:
            return "ip";
        case NFPROTO_ARP:
            return "arp";
        case NFPROTO_NETDEV:
            return "netdev";
        case NFPROTO_BRIDGE:
            return "bridge";
        case NFPROTO_IPV6:
            return "ip6";
        default:
            return std::to_string(family);
    }
}

/// nf_tables is not there, or not for us.
bool is_missing(int error) {
    return error == EPERM || error == EACCES || error == EINVAL || error == ENOENT ||
           error == EOPNOTSUPP || error == EPROTONOSUPPORT || error == EAFNOSUPPORT;
}

class NftReader {
  public:
    explicit NftReader(const IsOthers& is_others)
        : is_others_(is_others), socket_(mnl_socket_open2(NETLINK_NETFILTER, SOCK_CLOEXEC)) {
        if (!socket_ && !is_missing(errno)) throw Error(step, errno);
        if (socket_) check(mnl_socket_bind(socket_.get(), 0, MNL_SOCKET_AUTOPID), step);
    }

    Lines operator()() {
        // What changes in the middle of a dump is seen anew; it does not do so for ever.
        constexpr int most_tries = 50;
        for (int tries = 0; socket_ && tries < most_tries; ++tries) {
            lines_.clear();
            const bool whole = std::all_of(nft_kinds.begin(), nft_kinds.end(),
                                           [this](const NftKind& kind) { return dump(kind); });
            if (whole) return std::move(lines_);
        }
        if (socket_) throw Error(step, EINTR);
        return {};
    }

  private:
    static constexpr const char* step = "read the host's nftables rules";

    /// False where it changed meanwhile.
    bool dump(const NftKind& kind) {
        alignas(nlmsghdr) std::array<char, 32768> buffer{};
        const auto* request = nftnl_nlmsg_build_hdr(buffer.data(), kind.dump, NFPROTO_UNSPEC,
                                                    NLM_F_DUMP, ++sequence_);
        check(static_cast<int>(mnl_socket_sendto(socket_.get(), request, request->nlmsg_len)),
              step);
        bool whole = true;
        for (;;) {
            int length =
                static_cast<int>(mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size()));
            check(length, step);
            const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
            for (; mnl_nlmsg_ok(header, length); header = mnl_nlmsg_next(header, &length)) {
                if (header->nlmsg_seq != sequence_) continue;
                if ((header->nlmsg_flags & NLM_F_DUMP_INTR) != 0) whole = false;
                if (header->nlmsg_type == NLMSG_DONE) return whole;
                if (header->nlmsg_type == NLMSG_ERROR) return !has_failed(header);
                add_line(kind, header);
            }
        }
    }

    /// Whether it is to be tried again.
    static bool has_failed(const nlmsghdr* header) {
        const int error = -static_cast<const nlmsgerr*>(mnl_nlmsg_get_payload(header))->error;
        if (error != EINTR && !is_missing(error)) throw Error(step, error);
        return error == EINTR;
    }

    void add_line(const NftKind& kind, const nlmsghdr* header) {
        const auto* message = static_cast<const nfgenmsg*>(mnl_nlmsg_get_payload(header));
        const char* table = "";
        std::string within, handle, setting;
        for_each_attribute(*header, sizeof *message, [&](const nlattr& attribute) {
            const auto type = mnl_attr_get_type(&attribute);
            if (type == kind.table)
                table = mnl_attr_get_str(&attribute);
            else if (type == kind.handle)
                handle = fmt::format(" handle {}", be64toh(mnl_attr_get_u64(&attribute)));
            else if (kind.within != 0 && type == kind.within)
                within = fmt::format(" {}", mnl_attr_get_str(&attribute));
            else if (kind.setting_type != 0 && type == kind.setting_type)
                setting =
                    fmt::format(" {} {}", kind.setting, be32toh(mnl_attr_get_u32(&attribute)));
        });
        if (is_others_(table)) return;
        lines_.push_back(fmt::format("{} {} {}{}{}{}", kind.name,
                                     family_name(message->nfgen_family), table, within, handle,
                                     setting));
    }

    const IsOthers& is_others_;
    MnlSocket socket_;
    unsigned sequence_ = 0;
    Lines lines_;
};

// --- sysctls ------------------------------------------------------------------------------------

class SysctlReader {
  public:
    SysctlReader(const fs::path& leases, const IsOthers& is_others)
        : leases_(leases), is_others_(is_others) {}

    Lines operator()() {
        for (const char* family : {"ipv4", "ipv6"}) add_directory(fs::path{"net"} / family);
        return std::move(lines_);
    }

  private:
    static fs::path file_of(const fs::path& name) { return "/proc/sys" / name; }

    /// Directories are read before what is in them: an interface that goes takes its own with it.
    void add_directory(const fs::path& name) {
        std::vector<fs::path> directories;
        std::error_code error;
        for (fs::directory_iterator entry{file_of(name), error}, end; !error && entry != end;
             entry.increment(error)) {
            auto inner = name / entry->path().filename();
            std::error_code gone;
            if (entry->is_directory(gone))
                directories.push_back(std::move(inner));
            else
                add(inner);
        }
        for (const auto& directory : directories)
            if (!is_others_(directory.filename().string())) add_directory(directory);
    }

    void add(const fs::path& name) {
        const auto key = name.filename().string();
        // A group's number is another in each user namespace, and we may enter one.
        if (key == "ping_group_range") return;
        // Keys are nobody's to read in a job's log.
        if (key == "stable_secret" || key.starts_with("tcp_fastopen_key")) return;
        auto value = read(name);
        if (value == "1" && key == "forwarding" && name.string().starts_with("net/ipv4/conf/"))
            value = unleased(name);
        if (value) lines_.push_back(fmt::format("{} = {}", name.string(), *value));
    }

    /// The setting of an interface that was on a moment ago. A lease is there before it switches
    /// it on, and goes after it has put it back.
    std::optional<std::string> unleased(const fs::path& name) const {
        const auto interface = name.parent_path().filename().string();
        return is_forwarding_leased(leases_, interface) ? "0" : read(name);
    }

    /// Nothing where it cannot be read.
    static std::optional<std::string> read(const fs::path& name) {
        const UniqueFd fd{::open(file_of(name).c_str(), O_RDONLY | O_CLOEXEC)};
        if (!fd) return std::nullopt;
        std::array<char, 4096> buffer;
        const auto size = ::read(fd.get(), buffer.data(), buffer.size());
        if (size < 0) return std::nullopt;
        std::string text{buffer.data(), static_cast<std::size_t>(size)};
        text.erase(text.find_last_not_of(" \t\n") + 1);
        std::replace_if(
            text.begin(), text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
        return text;
    }

    const fs::path& leases_;
    const IsOthers& is_others_;
    Lines lines_;
};

}  // namespace

HostPicture read_host_picture(const fs::path& leases, const IsOthers& is_others) {
    HostPicture picture;
    RouteReader reader{is_others};
    picture.push_back({"link", reader.links()});
    picture.push_back({"address", reader.addresses()});
    picture.push_back({"route", reader.routes()});
    picture.push_back({"rule", reader.rules()});
    picture.push_back({"nftables", NftReader{is_others}()});
    picture.push_back({"sysctl", SysctlReader{leases, is_others}()});
    return picture;
}

}  // namespace qvm::netns
