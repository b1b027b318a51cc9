#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <unordered_set>

#include "netns/spare_sockets.h"
#include "netns/splice.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

/// Carries the connections of one listening socket into a namespace. Part of PortForwards; made by
/// std::make_shared, but owned by one: handlers that are under way only look whether it is still
/// there, so everything closes with it.
class TcpForward : public std::enable_shared_from_this<TcpForward> {
  public:
    /// Takes ownership of `listener`. `sockets` (streams) and `pipes` must outlive this object.
    /// Throws boost::system::system_error.
    TcpForward(const boost::asio::any_io_executor& executor, UniqueFd listener,
               const boost::asio::ip::tcp::endpoint& guest, SpareSockets& sockets, PipePool& pipes);
    TcpForward(const TcpForward&) = delete;
    TcpForward& operator=(const TcpForward&) = delete;
    /// Resets the connections.
    ~TcpForward();

    /// Starts to accept.
    void start();

  private:
    class Connection;
    /// What accept_one() did.
    enum class Accepted {
        one,      ///< there may be more
        all,      ///< nobody is waiting
        not_now,  ///< there are no descriptors
    };

    static Accepted what_failed(int error);
    void wait();
    void accept_some();
    Accepted accept_one();
    void pause();

    boost::asio::posix::stream_descriptor listener_;
    boost::asio::ip::tcp::endpoint guest_;
    SpareSockets& sockets_;
    PipePool& pipes_;
    boost::asio::steady_timer pause_;
    std::unordered_set<std::shared_ptr<Connection>> connections_;
};

}  // namespace qvm::netns
