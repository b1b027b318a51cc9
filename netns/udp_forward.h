#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "netns/flow_table.h"
#include "netns/spare_sockets.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

/// Carries the datagrams that come to one socket into a namespace, and the answers back. Part of
/// PortForwards; made by std::make_shared, but owned by one, as TcpForward is.
class UdpForward : public std::enable_shared_from_this<UdpForward> {
  public:
    /// A client, and the address of ours that it sent to: the answers come from there.
    using Peer = std::pair<boost::asio::ip::udp::endpoint, boost::asio::ip::address>;

    /// A client that was silent for this long, and was sent nothing, is forgotten.
    static constexpr std::chrono::seconds idle_time{60};
    /// Clients at once, each of them one descriptor; a new one takes the longest idle one's place.
    static constexpr std::size_t most_flows = 1024;

    /// Takes ownership of `socket`, bound and with IP_PKTINFO (IPv6: IPV6_RECVPKTINFO). `sockets`
    /// (datagrams) must outlive this object. Throws boost::system::system_error.
    UdpForward(const boost::asio::any_io_executor& executor, UniqueFd socket,
               const boost::asio::ip::udp::endpoint& guest, SpareSockets& sockets,
               std::chrono::steady_clock::duration idle = idle_time);
    UdpForward(const UdpForward&) = delete;
    UdpForward& operator=(const UdpForward&) = delete;
    ~UdpForward();

    /// Starts to receive.
    void start();

  private:
    class Flow;

    void wait();
    void receive_some();
    Flow* flow_of(const Peer& peer);
    void answer(const Peer& peer, std::size_t size);
    void wait_for_expiry();

    boost::asio::posix::stream_descriptor socket_;
    boost::asio::ip::udp::endpoint guest_;
    SpareSockets& sockets_;
    boost::asio::steady_timer expiry_;
    bool expiry_awaited_ = false;
    std::vector<char> buffer_;  ///< one datagram, on its way from one socket to another
    FlowTable<Peer, std::shared_ptr<Flow>> flows_;
};

}  // namespace qvm::netns
