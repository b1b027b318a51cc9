#include "netns/dns_relay.h"

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/udp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

namespace qvm::netns {

namespace asio = boost::asio;
namespace ip = boost::asio::ip;
using asio::awaitable;
using namespace asio::experimental::awaitable_operators;

namespace {

constexpr unsigned short dns_port = 53;
constexpr std::size_t largest_datagram = 65535;
// A guest cannot make us hold more than this.
constexpr int most_queries = 256;
constexpr int most_connections = 64;
// Below the 5 s after which resolv.conf(5) says that a client asks again.
constexpr std::chrono::seconds answer_timeout{2};
// RFC 7766, section 6.2.3: a server may close idle connections after a few seconds.
constexpr std::chrono::seconds idle_timeout{10};

// A datagram may be lost, a resolver be started again, a name's own servers be slow or gone.
constexpr int unanswered_in_a_row = 3;
// Between questions of our own: to those who refuse at once, and while nobody answers.
constexpr std::chrono::seconds judge_pause{1};
constexpr std::chrono::seconds judge_again{10};

/// Which name servers the root has: a question that every resolver can answer at once.
std::string root_query() {
    constexpr std::string_view header{"\x71\x76\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", 12};
    constexpr std::string_view question{"\x00\x00\x02\x00\x01", 5};
    return std::string{header} + std::string{question};
}

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);

/// Counts what is under way for as long as it lives.
class Slot {
  public:
    explicit Slot(int& used) : used_(used) { ++used_; }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;
    ~Slot() { --used_; }

  private:
    int& used_;
};

/// A steady timer's wait as one side of ||.
awaitable<void> timeout(std::chrono::seconds duration) {
    asio::steady_timer timer{co_await asio::this_coro::executor, duration};
    co_await timer.async_wait(asio::use_awaitable);
}

/// One way of a TCP connection, until its end or until nothing came for idle_timeout.
awaitable<void> copy(ip::tcp::socket& from, ip::tcp::socket& to) {
    std::array<char, 4096> buffer;
    for (;;) {
        const auto read = co_await (from.async_read_some(asio::buffer(buffer), no_throw) ||
                                    timeout(idle_timeout));
        if (read.index() == 1) co_return;
        const auto [error, size] = std::get<0>(read);
        if (error) co_return;
        const auto [write_error, written] =
            co_await asio::async_write(to, asio::buffer(buffer, size), no_throw);
        if (write_error) co_return;
    }
}

}  // namespace

std::vector<ip::address> parse_nameservers(std::string_view resolv_conf) {
    std::vector<ip::address> result;
    std::istringstream lines{std::string{resolv_conf}};
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words{line};
        std::string keyword, value;
        boost::system::error_code error;
        if (!(words >> keyword >> value) || keyword != "nameserver") continue;
        const auto address = ip::make_address(value, error);
        if (!error) result.push_back(address);
    }
    if (result.empty()) result.push_back(ip::address_v4::loopback());
    return result;
}

struct DnsRelay::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor, int udp_fd, int tcp_fd, Report reports,
          std::filesystem::path path)
        : udp{executor, ip::udp::v4(), udp_fd},
          tcp{executor, ip::tcp::v4(), tcp_fd},
          report{std::move(reports)},
          resolv_conf{std::move(path)} {}

    std::vector<ip::address> nameservers() const {
        std::ifstream file{resolv_conf};
        std::ostringstream text;
        text << file.rdbuf();
        return parse_nameservers(text.str());
    }

    /// Asks one nameserver. Empty where no answer came, which `why` then tells.
    static awaitable<std::string> ask(ip::address nameserver, std::string query,
                                      boost::system::error_code& why) {
        ip::udp::socket socket{co_await asio::this_coro::executor};
        socket.connect({nameserver, dns_port}, why);
        if (why) co_return std::string{};
        socket.send(asio::buffer(query), 0, why);
        if (why) co_return std::string{};
        std::string answer(largest_datagram, '\0');
        const auto result = co_await (socket.async_receive(asio::buffer(answer), no_throw) ||
                                      timeout(answer_timeout));
        why = asio::error::timed_out;
        if (result.index() == 1) co_return std::string{};
        const auto [receive_error, size] = std::get<0>(result);
        why = receive_error;
        answer.resize(receive_error ? 0 : size);
        co_return answer;
    }

    /// Asks one after another. Empty where none answers.
    awaitable<std::string> ask_all(std::string query) {
        std::string failures;
        for (const auto& nameserver : nameservers()) {
            boost::system::error_code why;
            auto reply = co_await ask(nameserver, query, why);
            if (!why) {
                settle({});
                co_return reply;
            }
            failures += (failures.empty() ? "" : ", ") + nameserver.to_string() + ": " +
                        (why == asio::error::timed_out ? "no answer" : why.message());
        }
        settle(
            "names do not resolve in the guest: the host's name servers (/etc/resolv.conf) do "
            "not answer (" +
            failures + ")");
        co_return std::string{};
    }

    /// What has become of a query; `why` is empty where it was answered.
    void settle(const std::string& why) {
        unanswered = why.empty() ? 0 : unanswered + 1;
        const bool fails = unanswered >= unanswered_in_a_row;
        if (std::exchange(fails_now, fails) == fails || !report) return;
        report(why);
        if (fails) asio::co_spawn(udp.get_executor(), judge(), asio::detached);
    }

    awaitable<void> answer(std::string query, ip::udp::endpoint client) {
        const auto self = shared_from_this();
        const Slot slot{queries};
        const auto reply = co_await ask_all(std::move(query));
        if (!reply.empty()) co_await udp.async_send_to(asio::buffer(reply), client, no_throw);
    }

    /// Asks for the root until there is an answer.
    awaitable<void> judge() {
        const auto self = shared_from_this();
        if (std::exchange(judges, true)) co_return;
        while (report && udp.is_open()) {
            auto query = root_query();
            const auto answer = co_await ask_all(std::move(query));
            if (!answer.empty()) break;
            co_await timeout(fails_now ? judge_again : judge_pause);
        }
        judges = false;
    }

    awaitable<void> serve_udp() {
        const auto self = shared_from_this();
        std::string buffer(largest_datagram, '\0');
        for (;;) {
            ip::udp::endpoint client;
            const auto [error, size] =
                co_await udp.async_receive_from(asio::buffer(buffer), client, no_throw);
            if (error == asio::error::operation_aborted || !udp.is_open()) co_return;
            if (error || queries >= most_queries) continue;
            asio::co_spawn(udp.get_executor(), answer(buffer.substr(0, size), client),
                           asio::detached);
        }
    }

    awaitable<void> relay(ip::tcp::socket client) {
        const auto self = shared_from_this();
        const Slot slot{connections};
        for (const auto& nameserver : nameservers()) {
            ip::tcp::socket server{co_await asio::this_coro::executor};
            const auto connected = co_await (
                server.async_connect({nameserver, dns_port}, no_throw) || timeout(answer_timeout));
            if (connected.index() == 1 || std::get<0>(std::get<0>(connected))) continue;
            co_await (copy(client, server) || copy(server, client));
            co_return;
        }
    }

    awaitable<void> serve_tcp() {
        const auto self = shared_from_this();
        for (;;) {
            auto [error, client] = co_await tcp.async_accept(no_throw);
            if (error == asio::error::operation_aborted || !tcp.is_open()) co_return;
            // An accept that fails for want of descriptors would fail again at once.
            if (error) co_await timeout(std::chrono::seconds{1});
            if (error || connections >= most_connections) continue;
            asio::co_spawn(tcp.get_executor(), relay(std::move(client)), asio::detached);
        }
    }

    ip::udp::socket udp;
    ip::tcp::acceptor tcp;
    Report report;
    std::filesystem::path resolv_conf;
    int queries = 0;
    int unanswered = 0;      ///< since the last one that was not
    bool fails_now = false;  ///< as report was told
    bool judges = false;
    int connections = 0;
};

DnsRelay::DnsRelay(const asio::any_io_executor& executor, UniqueFd udp, UniqueFd tcp, Report report,
                   std::filesystem::path resolv_conf)
    : state_(std::make_shared<State>(executor, udp.get(), tcp.get(), std::move(report),
                                     std::move(resolv_conf))) {
    // Asio's sockets own them now.
    (void)udp.release();
    (void)tcp.release();
    asio::co_spawn(executor, state_->serve_udp(), asio::detached);
    asio::co_spawn(executor, state_->serve_tcp(), asio::detached);
    if (state_->report) asio::co_spawn(executor, state_->judge(), asio::detached);
}

DnsRelay::~DnsRelay() {
    if (!state_) return;
    state_->report = nullptr;
    boost::system::error_code ignored;
    state_->udp.close(ignored);
    state_->tcp.close(ignored);
}

}  // namespace qvm::netns
