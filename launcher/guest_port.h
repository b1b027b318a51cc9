#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <string>

#include "netns/spare_sockets.h"

namespace qvm {

/// A TCP port of the guest, seen from a namespace that reaches it.
class GuestPort {
  public:
    /// `space` must outlive this object. `banner`: what a server says first, which shows that it is
    /// one and not only somebody who listens for it; may be empty.
    GuestPort(const boost::asio::any_io_executor& executor, const netns::Namespace& space,
              boost::asio::ip::tcp::endpoint endpoint, std::string banner);

    /// Until a connection came about, which is closed again. Cancellable.
    boost::asio::awaitable<void> until_open();
    /// Why not yet: "192.168.26.10 port 22: Connection refused".
    [[nodiscard]] std::string problem() const;

  private:
    boost::asio::awaitable<std::string> find_problem();
    boost::asio::awaitable<bool> hears_banner(boost::asio::ip::tcp::socket& socket);

    boost::asio::any_io_executor executor_;
    netns::SpareSockets sockets_;
    boost::asio::ip::tcp::endpoint endpoint_;
    std::string banner_;
    std::string problem_ = "no answer";
};

}  // namespace qvm
