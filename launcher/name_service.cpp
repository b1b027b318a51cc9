#include "launcher/name_service.h"

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <optional>

#include "launcher/directories.h"
#include "launcher/step.h"
#include "netns/dns_relay.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

// In a group it may fail at first: its addresses are still another member's dnsmasq's, which is on
// its way out, or a TAP goes while it lists the interfaces.
constexpr int most_failures = 100;
constexpr auto start_pause = 20ms;
constexpr auto is_up = 1s;  // what lives so long has not failed at its start
// What ends it later (the kernel for want of memory, a guest's packets) must not end the guests,
// nor keep a CPU busy.
constexpr auto longest_pause = 1s;

awaitable<void> collect(std::shared_ptr<Process> process, Report report) {
    co_await process->words.collect(std::move(report));
}

}  // namespace

struct NameService::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor_, const netns::NetworkPlan& plan_, int space_,
          fs::path path, Report debug_, Report note_,
          std::function<void(const std::string&)> cannot_)
        : executor(executor_),
          plan(plan_),
          space(space_),
          directory(std::move(path)),
          debug(std::move(debug_)),
          note(std::move(note_)),
          cannot(std::move(cannot_)) {}

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
        SpawnSpec spec;
        spec.argv = netns::dnsmasq_command(plan, directory.string());
        spec.network_namespace = space;
        spec.ignore_hangup = true;  // until it has a handler: update() may come first
        dnsmasq = std::make_shared<Process>(executor);
        dnsmasq->start(std::move(spec));
        asio::co_spawn(executor, collect(dnsmasq, debug), asio::detached);
    }

    void signal(int number) noexcept {
        if (dnsmasq && dnsmasq->child) dnsmasq->child->signal(number);
    }

    /// Until it ends; why.
    awaitable<std::string> end_of_dnsmasq() {
        std::optional<ExitStatus> how;
        while (!how) {
            try {
                how = co_await dnsmasq->child->wait();
            } catch (const std::exception& error) {
                debug(error.what());
            }
            if (how) break;
            asio::steady_timer pause{executor, longest_pause};
            co_await pause.async_wait(asio::use_awaitable);
        }
        dnsmasq->child.reset();
        co_await asio::post(executor, asio::use_awaitable);  // the last of its stderr
        co_return "dnsmasq died: " + dnsmasq->words.text_or(how->describe());
    }

    /// Why it could not; nothing where it could.
    std::string start_again() {
        try {
            start();
            return {};
        } catch (const std::exception& error) {
            return error.what();
        }
    }

    /// Starts it again whenever it ends.
    awaitable<void> watch() {
        using Clock = std::chrono::steady_clock;
        const auto self = shared_from_this();
        asio::steady_timer timer{executor};
        Clock::duration pause = start_pause;
        bool was_up = false;
        std::string why;
        for (int failures = 0;;) {
            const auto began = Clock::now();
            if (why.empty()) {
                why = co_await end_of_dnsmasq();
                ++failures;
            }
            if (stopped) co_return;
            const bool came_up = Clock::now() - began >= is_up;
            if (came_up)
                note(why + "; it is started again");
            else
                debug(why);
            was_up = was_up || came_up;
            const bool hopeless = !was_up && failures >= most_failures;
            if (hopeless && cannot) co_return cannot(why);
            if (came_up)
                pause = start_pause;
            else if (was_up || hopeless)
                pause = std::min<Clock::duration>(2 * pause, longest_pause);
            timer.expires_after(pause);
            co_await timer.async_wait(asio::use_awaitable);
            if (stopped) co_return;
            why = start_again();
        }
    }

    asio::any_io_executor executor;
    netns::NetworkPlan plan;
    int space;
    fs::path directory;
    Report debug;
    Report note;
    std::shared_ptr<Process> dnsmasq;
    std::function<void(const std::string&)> cannot;
    std::optional<netns::DnsRelay> relay;
    std::string written;
    bool stopped = false;
};

NameService::NameService(const asio::any_io_executor& executor, const netns::NetworkPlan& plan,
                         const netns::Namespace& space, netns::Network::DnsSockets dns,
                         const fs::path& directory, const std::vector<netns::GuestPlan>& guests,
                         const Report& debug, const Report& note,
                         std::function<void(const std::string&)> cannot)
    : state_(std::make_shared<State>(executor, plan, space.fd(), directory, debug, note,
                                     std::move(cannot))) {
    write_file(directory / "resolv.conf", resolv_conf(plan));
    state_->write(guests);
    if (dns.udp)
        in_step("relay DNS queries",
                [&] { state_->relay.emplace(executor, std::move(dns.udp), std::move(dns.tcp)); });
    state_->start();
    asio::co_spawn(executor, state_->watch(), asio::detached);
}

NameService::~NameService() {
    stop();
}

void NameService::update(const std::vector<netns::GuestPlan>& guests) {
    if (state_->write(guests)) state_->signal(SIGHUP);
}

void NameService::stop() noexcept {
    state_->stopped = true;
    state_->relay.reset();
    state_->signal(SIGKILL);
}

std::string resolv_conf(const netns::NetworkPlan& plan) {
    return fmt::format("nameserver {}\nsearch {}\n", plan.own_address.to_string(), netns::domain);
}

}  // namespace qvm
