#include "launcher/name_service.h"

#include <fmt/format.h>
#include <signal.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <optional>

#include "launcher/directories.h"
#include "netns/dns_relay.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::awaitable;

namespace {

// dnsmasq(8), EXIT CODES: "a problem with network access occurred (address in use, ...)".
constexpr int address_in_use = 2;
// Of the dnsmasq of a leader that was killed, to follow it.
constexpr std::chrono::milliseconds retry_pause{50};
constexpr int most_retries = 40;

}  // namespace

struct NameService::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor_, const netns::NetworkPlan& plan_, fs::path path,
          Report debug_, std::function<void(const std::string&)> died_)
        : executor(executor_),
          plan(plan_),
          directory(std::move(path)),
          debug(std::move(debug_)),
          died(std::move(died_)) {}

    /// Whether they are other files than before.
    bool write(const std::vector<netns::GuestPlan>& guests) {
        const auto leases = netns::dhcp_hosts(guests);
        if (leases == written) return false;
        write_file(directory / "hosts", netns::dns_hosts(plan, guests));
        write_file(directory / "dhcp-hosts", leases);
        written = leases;
        return true;
    }

    void start() {
        dnsmasq = std::make_shared<Process>(executor);
        dnsmasq->start(command);
        asio::co_spawn(executor, dnsmasq->words.collect(debug),
                       [keep = dnsmasq](const std::exception_ptr&) {});
        asio::co_spawn(executor, watch(dnsmasq), asio::detached);
    }

    awaitable<void> watch(std::shared_ptr<Process> process) {
        const auto self = shared_from_this();
        const auto how = co_await process->child->wait();
        process->child.reset();
        // The last of its stderr.
        co_await asio::post(executor, asio::use_awaitable);
        if (stopped) co_return;
        if (how.code != address_in_use || retries == most_retries)
            co_return died("dnsmasq died: " + process->words.text_or(how.describe()));
        ++retries;
        asio::steady_timer pause{executor, retry_pause};
        co_await pause.async_wait(asio::use_awaitable);
        if (!stopped) start();
    }

    asio::any_io_executor executor;
    netns::NetworkPlan plan;
    fs::path directory;
    Report debug;
    std::function<void(const std::string&)> died;
    SpawnSpec command;
    std::shared_ptr<Process> dnsmasq;
    std::optional<netns::DnsRelay> relay;
    std::string written;
    int retries = 0;
    bool stopped = false;
};

NameService::NameService(const asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                         const netns::Namespace& space, netns::Network::DnsSockets dns,
                         const fs::path& directory, const std::vector<netns::GuestPlan>& guests,
                         const Report& debug, std::function<void(const std::string&)> died)
    : state_(std::make_shared<State>(executor, plan, directory, debug, std::move(died))) {
    write_file(directory / "resolv.conf", resolv_conf(plan));
    state_->write(guests);
    state_->command.argv = netns::dnsmasq_command(plan, directory.string());
    state_->command.network_namespace = space.fd();
    state_->command.ignore_hangup = true;  // until it has a handler: update() may come first
    state_->start();
    if (dns.udp) state_->relay.emplace(executor, std::move(dns.udp), std::move(dns.tcp));
}

NameService::~NameService() {
    stop();
}

void NameService::update(const std::vector<netns::GuestPlan>& guests) {
    if (state_->write(guests) && state_->dnsmasq->child) state_->dnsmasq->child->signal(SIGHUP);
}

void NameService::stop() noexcept {
    state_->stopped = true;
    state_->relay.reset();
    if (state_->dnsmasq->child) state_->dnsmasq->child->signal(SIGKILL);
}

std::string resolv_conf(const netns::NetworkPlan& plan) {
    return fmt::format("nameserver {}\nsearch {}\n", plan.own_address.to_string(), netns::domain);
}

}  // namespace qvm
