#include "netns/route_socket.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/netlink.h>
#include <netlink/route/rtnl.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <optional>

#include "netns/error.h"

namespace qvm::netns {

namespace {

void enable(int fd, int option, std::string_view step) {
    int one = 1;
    check(::setsockopt(fd, SOL_NETLINK, option, &one, sizeof one), step);
}

/// The kernel's sentence in an acknowledgement that carries one. With NETLINK_CAP_ACK the
/// attributes follow the nlmsgerr directly. See linux/netlink.h, enum nlmsgerr_attrs.
std::string extended_ack_text(nlmsghdr* header) {
    if (!(header->nlmsg_flags & NLM_F_ACK_TLVS)) return {};
    std::array<nlattr*, NLMSGERR_ATTR_MAX + 1> attributes{};
    if (nlmsg_parse(header, sizeof(nlmsgerr), attributes.data(), NLMSGERR_ATTR_MAX, nullptr) < 0)
        return {};
    auto* text = attributes[NLMSGERR_ATTR_MSG];
    if (text == nullptr) return {};
    auto* begin = static_cast<const char*>(nla_data(text));
    return {begin, ::strnlen(begin, static_cast<std::size_t>(nla_len(text)))};
}

}  // namespace

RouteSocket::RouteSocket() : socket_(nl_socket_alloc()) {
    if (!socket_) throw Error("open rtnetlink socket", ENOMEM);
    nl_check("open rtnetlink socket", [this] { return nl_connect(socket_.get(), NETLINK_ROUTE); });
    nl_socket_disable_seq_check(
        socket_.get());  // a failure would leave its count behind; see get()
    enable(nl_socket_get_fd(socket_.get()), NETLINK_EXT_ACK, "enable rtnetlink's extended acks");
    enable(nl_socket_get_fd(socket_.get()), NETLINK_CAP_ACK, "cap rtnetlink's acks");
}

nl_sock* RouteSocket::get() const noexcept {
    constexpr int most_reads = 1000;  // of a dump that was broken off, all parts
    std::array<char, 16384> unread;
    for (int reads = 0; reads < most_reads; ++reads) {
        const auto size =
            ::recv(nl_socket_get_fd(socket_.get()), unread.data(), unread.size(), MSG_DONTWAIT);
        if (size < 0 && errno != EINTR && errno != ENOBUFS) break;
    }
    return socket_.get();
}

void nl_check(std::string_view step, const std::function<int()>& call) {
    errno = 0;
    const int error = call();
    if (error >= 0) return;
    if (errno != 0) throw Error(step, errno);
    throw Error(step, nl_geterror(error));
}

void RouteSocket::transact(std::vector<Request> requests) {
    if (requests.empty()) return;
    const unsigned first = sequence_;
    std::vector<char> batch;
    for (auto& request : requests) {
        auto* header = nlmsg_hdr(request.message.get());
        header->nlmsg_seq = sequence_++;
        header->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
        auto* begin = reinterpret_cast<const char*>(header);
        batch.insert(batch.end(), begin, begin + NLMSG_ALIGN(header->nlmsg_len));
    }
    const int fd = nl_socket_get_fd(socket_.get());
    check(static_cast<int>(::send(fd, batch.data(), batch.size(), 0)), "send rtnetlink requests");

    std::optional<Error> failure;
    for (std::size_t answered = 0; answered < requests.size();) {
        alignas(nlmsghdr) std::array<char, 16384> buffer;
        int length = static_cast<int>(::recv(fd, buffer.data(), buffer.size(), 0));
        if (length < 0 && errno == EINTR) continue;
        check(length, "receive rtnetlink acknowledgement");
        auto* header = reinterpret_cast<nlmsghdr*>(buffer.data());
        for (; nlmsg_ok(header, length); header = nlmsg_next(header, &length)) {
            const unsigned index = header->nlmsg_seq - first;
            if (header->nlmsg_type != NLMSG_ERROR || index >= requests.size()) continue;
            ++answered;
            const auto* ack = static_cast<const nlmsgerr*>(nlmsg_data(header));
            if (ack->error != 0 && !failure)
                failure.emplace(requests[index].step, -ack->error, extended_ack_text(header));
        }
    }
    if (failure) throw *failure;
}

int alloc_address_cache(nl_sock* socket, int family, nl_cache** result) {
    nl_cache* raw = nullptr;
    if (const int error = nl_cache_alloc_name("route/addr", &raw); error < 0) return error;
    NlCache cache{raw};
    // nl_cache_refill() asks for all, whatever the cache is told (libnl 3.7).
    int error = nl_rtgen_request(socket, RTM_GETADDR, family, NLM_F_DUMP);
    if (error >= 0) error = nl_cache_pickup(socket, raw);
    if (error == 0) *result = cache.release();
    return error;
}

}  // namespace qvm::netns
