#include "netns/port_forward.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "netns/error.h"
#include "netns/spare_sockets.h"
#include "netns/splice.h"
#include "netns/tcp_forward.h"
#include "netns/udp_forward.h"

namespace qvm::netns {

namespace asio = boost::asio;
namespace ip = boost::asio::ip;
using ip::tcp;
using ip::udp;

namespace {

/// The options of a published socket, to be set before it is bound.
void set_options(int fd, Protocol protocol, bool v6, const std::string& step) {
    const auto enable = [&](int level, int option) {
        const int on = 1;
        check(::setsockopt(fd, level, option, &on, sizeof on), step);
    };
    if (v6) enable(IPPROTO_IPV6, IPV6_V6ONLY);
    if (protocol == Protocol::tcp)
        enable(SOL_SOCKET, SO_REUSEADDR);
    else if (v6)
        enable(IPPROTO_IPV6, IPV6_RECVPKTINFO);
    else
        enable(IPPROTO_IP, IP_PKTINFO);
}

/// The port that a socket is bound to.
unsigned short port_of(int fd, const std::string& step) {
    udp::endpoint bound;
    auto size = static_cast<socklen_t>(bound.capacity());
    check(::getsockname(fd, bound.data(), &size), step);
    return bound.port();
}

/// In the calling thread's namespace. Where it cannot be set, connections that follow each other
/// too fast are reset.
void reuse_ports() {
    const UniqueFd fd{::open("/proc/sys/net/ipv4/tcp_tw_reuse", O_WRONLY | O_CLOEXEC)};
    if (fd) (void)!::write(fd.get(), "1", 1);
}

}  // namespace

std::string to_text(Protocol protocol, const ip::address& address, unsigned short port) {
    const auto* name = protocol == Protocol::tcp ? "tcp" : "udp";
    const auto text = address.to_string();
    return address.is_v6() ? fmt::format("[{}]:{}/{}", text, port, name)
                           : fmt::format("{}:{}/{}", text, port, name);
}

BoundPort bind_port(Protocol protocol, const ip::address& address, unsigned short port) {
    const auto step = "publish " + to_text(protocol, address, port);
    const bool is_tcp = protocol == Protocol::tcp;
    const int family = address.is_v6() ? AF_INET6 : AF_INET;
    const int type = (is_tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC | SOCK_NONBLOCK;
    UniqueFd socket{check(::socket(family, type, 0), step)};
    set_options(socket.get(), protocol, address.is_v6(), step);
    const udp::endpoint wanted{address, port};  // TCP's is the same sockaddr
    check(::bind(socket.get(), wanted.data(), static_cast<socklen_t>(wanted.size())), step);
    if (is_tcp) check(::listen(socket.get(), SOMAXCONN), step);
    const auto real_port = port_of(socket.get(), step);
    return {protocol, address, real_port, std::move(socket)};
}

struct PortForwards::State {
    State(const asio::any_io_executor& executor, const Namespace& space)
        : executor_(executor), streams_(space, SOCK_STREAM), datagrams_(space, SOCK_DGRAM) {
        space.run(reuse_ports);
    }

    void add(Publication publication) {
        auto socket = std::move(publication.port.socket);
        if (publication.port.protocol == Protocol::tcp) {
            const tcp::endpoint guest{publication.guest, publication.guest_port};
            tcp_.push_back(std::make_shared<TcpForward>(executor_, std::move(socket), guest,
                                                        streams_, pipes_));
            tcp_.back()->start();
        } else {
            const udp::endpoint guest{publication.guest, publication.guest_port};
            udp_.push_back(
                std::make_shared<UdpForward>(executor_, std::move(socket), guest, datagrams_));
            udp_.back()->start();
        }
    }

    asio::any_io_executor executor_;
    SpareSockets streams_;
    SpareSockets datagrams_;
    PipePool pipes_;
    std::vector<std::shared_ptr<TcpForward>> tcp_;
    std::vector<std::shared_ptr<UdpForward>> udp_;
};

PortForwards::PortForwards(const asio::any_io_executor& executor, const Namespace& space,
                           std::vector<Publication> publications)
    : state_(std::make_unique<State>(executor, space)) {
    for (auto& publication : publications) state_->add(std::move(publication));
}

PortForwards::PortForwards(PortForwards&&) noexcept = default;
PortForwards::~PortForwards() = default;

}  // namespace qvm::netns
