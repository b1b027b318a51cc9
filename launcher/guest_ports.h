#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/values.h"
#include "netns/namespace.h"

namespace qvm {

inline constexpr std::uint16_t ssh_port = 22;

/// Where a TCP port of the guest is reached: from the VM's namespace at `address`, its own, or,
/// with QEMU's user networking, where the host publishes it. Throws Failure where there is no way,
/// with a hint. Pure.
boost::asio::ip::tcp::endpoint guest_endpoint(
    NetOption::Mode mode, const std::optional<boost::asio::ip::address_v4>& address,
    const std::vector<PublishOption>& published, std::uint16_t port);

/// The guest's TCP ports, tried for whoever waits for one: by one connection at a time, since sshd
/// counts those that do not log in, and never again where one came about, until the guest restarts.
class GuestPorts {
  public:
    struct Ways {
        std::function<const netns::Namespace&()> space;  ///< from which the guest is reached
        std::function<boost::asio::ip::tcp::endpoint(std::uint16_t)> endpoint;  ///< of a port there
    };
    /// The executor runs no more when this object goes.
    GuestPorts(const boost::asio::any_io_executor& executor, Ways ways)
        : executor_(executor), ways_(std::move(ways)) {}

    /// Until the port of `stage`, which is ssh or tcp, is open; an ssh server also has to have said
    /// that it is one. Cancellable. Throws Failure where there is no way to it.
    boost::asio::awaitable<void> until_open(WaitForOption stage);
    /// Why it is not, as far as that is known: "192.168.26.10 port 22: Connection refused".
    [[nodiscard]] std::string problem(const WaitForOption& stage) const;
    /// What was open is not any more.
    void guest_restarts();

  private:
    struct Port {
        boost::asio::ip::tcp::endpoint endpoint;
        std::string banner;  ///< what its server says first; may be empty
        std::string problem = "no answer";
        bool is_open = false;
        bool is_tried = false;  ///< just now
    };
    boost::asio::awaitable<std::string> find_problem(const Port& port);
    boost::asio::awaitable<bool> hears(boost::asio::ip::tcp::socket& socket, std::string banner);

    boost::asio::any_io_executor executor_;
    Ways ways_;
    std::map<std::string, std::shared_ptr<Port>> ports_;  ///< by their stages
};

}  // namespace qvm
