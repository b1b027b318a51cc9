#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launcher/last_words.h"
#include "netns/network.h"
#include "netns/plan.h"

namespace qvm {

/// DHCP and DNS for the guests of one namespace: dnsmasq inside it, and the relay by which its
/// queries get out.
class NameService {
  public:
    /// Starts both for `guests`. dnsmasq's files are kept in `directory`; `space` (borrowed) and
    /// `dns` (unset without an uplink) are the namespace's. A dnsmasq that dies is started again,
    /// and `note` told so; `cannot` is told why, where it never comes up at all; without it there
    /// is no end of tries. Throws Failure.
    NameService(const boost::asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                const netns::Namespace& space, netns::Network::DnsSockets dns,
                const std::filesystem::path& directory, const std::vector<netns::GuestPlan>& guests,
                const Report& debug, const Report& note,
                std::function<void(const std::string&)> cannot);
    NameService(const NameService&) = delete;
    NameService& operator=(const NameService&) = delete;
    /// Ends both.
    ~NameService();

    /// Guests came or went. Throws Failure; may be repeated then.
    void update(const std::vector<netns::GuestPlan>& guests);
    /// Has dnsmasq killed, without waiting for it.
    void stop() noexcept;

  private:
    struct State;
    std::shared_ptr<State> state_;
};

/// The resolv.conf(5) for programs of the host that run inside the namespace.
std::string resolv_conf(const netns::NetworkPlan& plan);

}  // namespace qvm
