#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <memory>
#include <string>
#include <vector>

#include "netns/namespace.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

enum class Protocol { tcp, udp };

/// A port of the host that is ours: nobody else can bind it, and nobody serves it yet. With TCP the
/// kernel already accepts connections, as many as it queues.
struct BoundPort {
    Protocol protocol;
    boost::asio::ip::address address;
    unsigned short port;  ///< the real one where 0 was asked for
    UniqueFd socket;      ///< bound, TCP listens; of the namespace where it was bound
};

/// "127.0.0.1:8080/tcp", "[::1]:53/udp".
std::string to_text(Protocol protocol, const boost::asio::ip::address& address,
                    unsigned short port);

/// Binds a port in the calling thread's namespace; port 0 lets the kernel pick one. With TCP,
/// connections of an earlier owner that are in TIME_WAIT are no obstacle. An IPv6 address is IPv6
/// only. Throws Error ("publish 127.0.0.1:8080/tcp: Address already in use").
BoundPort bind_port(Protocol protocol, const boost::asio::ip::address& address,
                    unsigned short port);

/// A port, and where what comes there is carried to.
struct Publication {
    BoundPort port;
    boost::asio::ip::address_v4 guest;
    unsigned short guest_port;
};

/// Carries what comes to published ports to a guest, from a namespace that reaches it: every
/// connection, and every client of a UDP port, gets a socket that was opened there.
///
/// TCP is joined inside the kernel (splice(2)): an end of one way is passed on as such, a reader
/// that stops makes the writer stop, and a reset (or a guest that refuses) resets the other side.
/// A connection is two descriptors, and two more while it has bytes on their way. Where
/// descriptors run out, clients wait in the kernel's queue.
/// UDP clients are forgotten after a minute (UdpForward).
///
/// One thread: the executor's. SIGPIPE must be ignored, since splice(2) cannot be told not to raise
/// it. `space` must outlive this object, which does not hold it: the sockets inside, which keep
/// the namespace alive, are all closed when the destructor returns.
class PortForwards {
  public:
    /// Takes ownership of the ports' sockets and starts to serve them on `executor`. In `space` it
    /// lets ports that are in TIME_WAIT be used again (tcp_tw_reuse): all connections to a guest's
    /// port have the same addresses, and there are 28000 ports. Throws Error or
    /// boost::system::system_error.
    PortForwards(const boost::asio::any_io_executor& executor, const Namespace& space,
                 std::vector<Publication> publications);
    PortForwards(PortForwards&&) noexcept;
    /// Ends everything at once: connections are reset, also where the executor runs no more.
    ~PortForwards();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace qvm::netns
