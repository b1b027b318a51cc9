#include "launcher/name_service.h"

#include <fmt/format.h>
#include <signal.h>

#include "launcher/directories.h"
#include "launcher/step.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;

NameService::NameService(const asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                         const netns::Namespace& space, netns::Network::DnsSockets dns,
                         const fs::path& directory, const std::vector<netns::GuestPlan>& guests,
                         KeptProcess::Handlers handlers, netns::DnsRelay::Report names_report)
    : plan_(plan), directory_(directory) {
    write_file(directory / "resolv.conf", resolv_conf(plan));
    write(guests);
    if (dns.udp)
        in_step("relay DNS queries", [&] {
            relay_.emplace(executor, std::move(dns.udp), std::move(dns.tcp),
                           std::move(names_report));
        });
    SpawnSpec spec;
    spec.argv = netns::dnsmasq_command(plan, directory.string());
    spec.network_namespace = space.fd();
    spec.ignore_hangup = true;  // until it has a handler: update() may come first
    dnsmasq_.emplace(executor, std::move(spec), std::move(handlers));
}

bool NameService::write(const std::vector<netns::GuestPlan>& guests) {
    const auto leases = netns::dhcp_hosts(plan_, guests);
    if (leases == written_) return false;
    write_file(directory_ / "hosts", netns::dns_hosts(plan_, guests));
    write_file(directory_ / "dhcp-hosts", leases);
    written_ = leases;
    return true;
}

void NameService::update(const std::vector<netns::GuestPlan>& guests) {
    if (write(guests)) dnsmasq_->signal(SIGHUP);
}

void NameService::stop() noexcept {
    relay_.reset();
    dnsmasq_->stop();
}

std::string resolv_conf(const netns::NetworkPlan& plan) {
    return fmt::format("nameserver {}\nsearch {}\n", plan.own_address.to_string(), netns::domain);
}

}  // namespace qvm
