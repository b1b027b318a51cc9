#include "launcher/name_service.h"

#include <fmt/format.h>
#include <signal.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

#include "launcher/directories.h"
#include "netns/dns_relay.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::awaitable;

struct NameService::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor, const netns::NetworkPlan& plan_, fs::path path,
          std::function<void(const std::string&)> died_)
        : plan(plan_), directory(std::move(path)), dnsmasq(executor), died(std::move(died_)) {}

    /// Whether they are other files than before.
    bool write(const std::vector<netns::GuestPlan>& guests) {
        const auto leases = netns::dhcp_hosts(guests);
        if (leases == written) return false;
        write_file(directory / "hosts", netns::dns_hosts(plan, guests));
        write_file(directory / "dhcp-hosts", leases);
        written = leases;
        return true;
    }

    awaitable<void> watch() {
        const auto self = shared_from_this();
        const auto how = co_await dnsmasq.child->wait();
        dnsmasq.child.reset();
        // The last of its stderr.
        co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
        if (!stopped) died("dnsmasq died: " + dnsmasq.words.text_or(how.describe()));
    }

    netns::NetworkPlan plan;
    fs::path directory;
    Process dnsmasq;
    std::function<void(const std::string&)> died;
    std::optional<netns::DnsRelay> relay;
    std::string written;
    bool stopped = false;
};

NameService::NameService(const asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                         const netns::Namespace& space, netns::Network::DnsSockets dns,
                         const fs::path& directory, const std::vector<netns::GuestPlan>& guests,
                         const Report& debug, std::function<void(const std::string&)> died)
    : state_(std::make_shared<State>(executor, plan, directory, std::move(died))) {
    write_file(directory / "resolv.conf", resolv_conf(plan));
    state_->write(guests);
    SpawnSpec spec;
    spec.argv = netns::dnsmasq_command(plan, directory.string());
    spec.network_namespace = space.fd();
    spec.ignore_hangup = true;  // until it has a handler: update() may come first
    state_->dnsmasq.start(std::move(spec));
    if (dns.udp) state_->relay.emplace(executor, std::move(dns.udp), std::move(dns.tcp));
    asio::co_spawn(
        executor,
        [](std::shared_ptr<State> state, Report report) -> awaitable<void> {
            co_await state->dnsmasq.words.collect(std::move(report));
        }(state_, debug),
        asio::detached);
    asio::co_spawn(executor, state_->watch(), asio::detached);
}

NameService::~NameService() {
    stop();
}

void NameService::update(const std::vector<netns::GuestPlan>& guests) {
    if (state_->write(guests) && state_->dnsmasq.child) state_->dnsmasq.child->signal(SIGHUP);
}

void NameService::stop() noexcept {
    state_->stopped = true;
    state_->relay.reset();
    if (state_->dnsmasq.child) state_->dnsmasq.child->signal(SIGKILL);
}

std::string resolv_conf(const netns::NetworkPlan& plan) {
    return fmt::format("nameserver {}\nsearch {}\n", plan.own_address.to_string(), netns::domain);
}

}  // namespace qvm
