#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/kept_process.h"
#include "netns/dns_relay.h"
#include "netns/network.h"
#include "netns/plan.h"

namespace qvm {

/// DHCP and DNS for the guests of one namespace: dnsmasq inside it, and the relay by which its
/// queries get out.
class NameService {
  public:
    /// Starts both for `guests`. dnsmasq's files are kept in `directory`; `space` (borrowed) and
    /// `dns` (unset without an uplink) are the namespace's. `names_report` is told of the host's
    /// name servers. Throws Failure.
    NameService(const boost::asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                const netns::Namespace& space, netns::Network::DnsSockets dns,
                const std::filesystem::path& directory, const std::vector<netns::GuestPlan>& guests,
                KeptProcess::Handlers handlers, netns::DnsRelay::Report names_report);

    /// Guests came or went. Throws Failure; may be repeated then.
    void update(const std::vector<netns::GuestPlan>& guests);
    /// Has both ended, without waiting for it.
    void stop() noexcept;

  private:
    /// Whether they are other files than before.
    bool write(const std::vector<netns::GuestPlan>& guests);

    netns::NetworkPlan plan_;
    std::filesystem::path directory_;
    std::string written_;
    std::optional<netns::DnsRelay> relay_;
    std::optional<KeptProcess> dnsmasq_;
};

/// The resolv.conf(5) for programs of the host that run inside the namespace.
std::string resolv_conf(const netns::NetworkPlan& plan);

}  // namespace qvm
