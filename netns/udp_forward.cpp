#include "netns/udp_forward.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

namespace qvm::netns {

namespace asio = boost::asio;
namespace ip = boost::asio::ip;
using asio::posix::stream_descriptor;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t largest_datagram = 65535;
// Datagrams taken up in one go, before the other sockets get their turn.
constexpr int most_at_once = 64;

/// Room for the one control message that we read and write, aligned as it has to be.
union Control {
    cmsghdr header;
    char bytes[CMSG_SPACE(std::max(sizeof(in_pktinfo), sizeof(in6_pktinfo)))];
};

template <typename Info>
Info info_of(const cmsghdr* header) {
    Info info;
    std::memcpy(&info, CMSG_DATA(header), sizeof info);
    return info;
}

ip::address_v6 to_address(const in6_addr& address) {
    ip::address_v6::bytes_type bytes;
    std::memcpy(bytes.data(), &address, bytes.size());
    return ip::address_v6{bytes};
}

/// The address of ours that a datagram was sent to.
std::optional<ip::address> local_address(msghdr& message) {
    for (auto* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_PKTINFO)
            return ip::address_v4{ntohl(info_of<in_pktinfo>(header).ipi_spec_dst.s_addr)};
        if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_PKTINFO)
            return to_address(info_of<in6_pktinfo>(header).ipi6_addr);
    }
    return std::nullopt;
}

template <typename Info>
void put(msghdr& message, int level, int type, const Info& info) {
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = level;
    header->cmsg_type = type;
    header->cmsg_len = CMSG_LEN(sizeof info);
    std::memcpy(CMSG_DATA(header), &info, sizeof info);
    message.msg_controllen = CMSG_SPACE(sizeof info);
}

/// Makes `message` leave from `address`.
void put_local_address(msghdr& message, const ip::address& address) {
    if (address.is_v4()) {
        in_pktinfo info{};
        info.ipi_spec_dst.s_addr = htonl(address.to_v4().to_uint());
        put(message, IPPROTO_IP, IP_PKTINFO, info);
    } else {
        in6_pktinfo info{};
        const auto bytes = address.to_v6().to_bytes();
        std::memcpy(&info.ipi6_addr, bytes.data(), bytes.size());
        put(message, IPPROTO_IPV6, IPV6_PKTINFO, info);
    }
}

/// The size of the next datagram, which is put into `buffer`, and whom it is from; nothing with
/// errno where there is none.
std::optional<std::size_t> receive(int fd, std::vector<char>& buffer, UdpForward::Peer& peer) {
    iovec data{buffer.data(), buffer.size()};
    Control control;
    msghdr message{};
    message.msg_name = peer.first.data();
    message.msg_namelen = static_cast<socklen_t>(peer.first.capacity());
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    const auto size = ::recvmsg(fd, &message, MSG_DONTWAIT);
    if (size < 0) return std::nullopt;
    peer.first.resize(message.msg_namelen);
    peer.second = local_address(message).value_or(ip::address{});
    return static_cast<std::size_t>(size);
}

}  // namespace

/// A client's socket in the namespace, connected to the guest.
class UdpForward::Flow : public std::enable_shared_from_this<Flow> {
  public:
    Flow(UdpForward& owner, Peer peer)
        : owner_(owner), peer_(std::move(peer)), fd_(owner.socket_.get_executor()) {}

    /// False where the guest cannot be reached.
    bool start(UniqueFd socket) {
        const auto& guest = owner_.guest_;
        error_code error;
        if (::connect(socket.get(), guest.data(), static_cast<socklen_t>(guest.size())) != 0)
            return false;
        fd_.assign(socket.get(), error);
        if (error) return false;
        (void)socket.release();
        wait();
        return true;
    }

    void send(std::size_t size) {
        const auto* data = owner_.buffer_.data();
        const auto sent = ::send(fd_.native_handle(), data, size, MSG_DONTWAIT);
        // The guest's refusal of the datagram before: it was told, and this one was not sent.
        if (sent < 0 && errno == ECONNREFUSED)
            (void)::send(fd_.native_handle(), data, size, MSG_DONTWAIT);
    }

  private:
    void wait() {
        fd_.async_wait(stream_descriptor::wait_read,
                       [weak = weak_from_this()](const error_code& error) {
                           const auto self = weak.lock();
                           if (self && !error) self->receive_some();
                       });
    }

    void receive_some() {
        auto& buffer = owner_.buffer_;
        for (int i = 0; i < most_at_once; ++i) {
            const auto size =
                ::recv(fd_.native_handle(), buffer.data(), buffer.size(), MSG_DONTWAIT);
            if (size < 0 && errno == EAGAIN) break;
            if (size >= 0) owner_.answer(peer_, static_cast<std::size_t>(size));
        }
        wait();
    }

    UdpForward& owner_;
    Peer peer_;
    stream_descriptor fd_;
};

UdpForward::UdpForward(const asio::any_io_executor& executor, UniqueFd socket,
                       const ip::udp::endpoint& guest, SpareSockets& sockets, Clock::duration idle)
    : socket_(executor, socket.get()),
      guest_(guest),
      sockets_(sockets),
      expiry_(executor),
      buffer_(largest_datagram),
      flows_(most_flows, idle) {
    (void)socket.release();
}

UdpForward::~UdpForward() = default;

void UdpForward::start() {
    wait();
}

void UdpForward::wait() {
    socket_.async_wait(stream_descriptor::wait_read,
                       [weak = weak_from_this()](const error_code& error) {
                           const auto self = weak.lock();
                           if (self && !error) self->receive_some();
                       });
}

void UdpForward::receive_some() {
    for (int i = 0; i < most_at_once; ++i) {
        Peer peer;
        const auto size = receive(socket_.native_handle(), buffer_, peer);
        if (!size && errno == EAGAIN) break;
        if (!size) continue;
        if (auto* flow = flow_of(peer)) flow->send(*size);
    }
    wait();
}

/// The client's flow, a new one if need be; null where there is no socket for it: the datagram is
/// lost, as datagrams are.
UdpForward::Flow* UdpForward::flow_of(const Peer& peer) {
    const auto now = Clock::now();
    if (const auto* flow = flows_.find(peer, now)) return flow->get();
    auto socket = sockets_.take();
    if (!socket) return nullptr;
    auto flow = std::make_shared<Flow>(*this, peer);
    if (!flow->start(std::move(socket))) return nullptr;
    auto* added = flows_.insert(peer, std::move(flow), now).get();
    wait_for_expiry();
    return added;
}

void UdpForward::answer(const Peer& peer, std::size_t size) {
    flows_.find(peer, Clock::now());
    auto client = peer.first;
    iovec data{buffer_.data(), size};
    Control control{};
    msghdr message{};
    message.msg_name = client.data();
    message.msg_namelen = static_cast<socklen_t>(client.size());
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    put_local_address(message, peer.second);
    (void)::sendmsg(socket_.native_handle(), &message, MSG_DONTWAIT);
}

void UdpForward::wait_for_expiry() {
    const auto when = flows_.next_expiry();
    if (!when || expiry_awaited_) return;
    expiry_awaited_ = true;
    expiry_.expires_at(*when);
    expiry_.async_wait([weak = weak_from_this()](const error_code& error) {
        const auto self = weak.lock();
        if (!self || error) return;
        self->expiry_awaited_ = false;
        self->flows_.expire(Clock::now());
        self->wait_for_expiry();
    });
}

}  // namespace qvm::netns
