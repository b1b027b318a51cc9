#include <boost/asio.hpp>
#include <catch2/catch.hpp>
#include <fstream>

#include "netns/dns_relay.h"
#include "netns/network.h"
#include "oracle.h"

using namespace qvm;
using namespace qvm::netns;
namespace asio = boost::asio;
using asio::ip::tcp;
using asio::ip::udp;

namespace {

/// A namespace with a relay, and a "host" whose resolver is the loopback stub 127.0.0.53.
struct Fixture {
    explicit Fixture(DnsRelay::Report report = {}) {
        oracle::sh("ip link set lo up");
        resolver.open(udp::v4());
        resolver.bind({asio::ip::make_address("127.0.0.53"), 53});
        tcp_resolver.open(tcp::v4());
        tcp_resolver.set_option(tcp::acceptor::reuse_address(true));
        tcp_resolver.bind({asio::ip::make_address("127.0.0.53"), 53});
        tcp_resolver.listen();
        std::ofstream{path} << "# stub\nnameserver 127.0.0.99\nnameserver 127.0.0.53\n";
        space.run([&] {
            oracle::sh("ip link set lo up");
            udp::socket relay_udp{context, {asio::ip::address_v4::loopback(), dns_relay_port}};
            tcp::acceptor relay_tcp{context, {asio::ip::address_v4::loopback(), dns_relay_port}};
            relay =
                std::make_unique<DnsRelay>(context.get_executor(), UniqueFd{relay_udp.release()},
                                           UniqueFd{relay_tcp.release()}, std::move(report), path);
            client.open(udp::v4());
            client.connect({asio::ip::address_v4::loopback(), dns_relay_port});
            tcp_client.open(tcp::v4());
            tcp_client.connect({asio::ip::address_v4::loopback(), dns_relay_port});
        });
    }
    ~Fixture() { std::remove(path.c_str()); }

    asio::io_context context;
    Namespace space = Namespace::create();
    std::string path = "/tmp/qvm-resolv-" + std::to_string(::getpid());
    udp::socket resolver{context};
    tcp::acceptor tcp_resolver{context};
    udp::socket client{context};
    tcp::socket tcp_client{context};
    std::unique_ptr<DnsRelay> relay;
};

}  // namespace

TEST_CASE("a query over UDP goes to the host's resolver and its answer comes back") {
    Fixture f;
    std::string query(64, '\0'), answer(64, '\0');
    udp::endpoint asker;
    std::size_t got = 0;
    f.client.send(asio::buffer("question", 8));
    f.resolver.async_receive_from(asio::buffer(query), asker, [&](auto, std::size_t size) {
        query.resize(size);
        f.resolver.send_to(asio::buffer("answer", 6), asker);
    });
    f.client.async_receive(asio::buffer(answer), [&](auto, std::size_t size) {
        got = size;
        f.context.stop();
    });
    f.context.run_for(std::chrono::seconds{10});
    CHECK(query == "question");
    CHECK(answer.substr(0, got) == "answer");
}

TEST_CASE("a query over TCP as well") {
    Fixture f;
    std::string query(8, '\0'), answer(6, '\0');
    tcp::socket server{f.context};
    asio::write(f.tcp_client, asio::buffer("question", 8));
    f.tcp_resolver.async_accept(server, [&](auto error) {
        REQUIRE(!error);
        asio::async_read(server, asio::buffer(query), [&](auto, std::size_t) {
            asio::write(server, asio::buffer("answer", 6));
        });
    });
    asio::async_read(f.tcp_client, asio::buffer(answer),
                     [&](auto, std::size_t) { f.context.stop(); });
    f.context.run_for(std::chrono::seconds{10});
    CHECK(query == "question");
    CHECK(answer == "answer");
}

namespace {

/// Answers the next query; tells what it was.
void answer_one(Fixture& f, std::string& query, udp::endpoint& asker) {
    query.assign(64, '\0');
    f.resolver.async_receive_from(asio::buffer(query), asker, [&](auto error, std::size_t size) {
        query.resize(size);
        if (!error) f.resolver.send_to(asio::buffer("answer", 6), asker);
    });
}

}  // namespace

TEST_CASE("resolvers that do not answer are told of, and that they answer again") {
    std::vector<std::string> told;
    Fixture f{[&](const std::string& why) { told.push_back(why); }};
    f.resolver.close();
    f.context.run_for(std::chrono::milliseconds{500});
    CHECK(told.empty());  // one may be lost
    f.context.run_for(std::chrono::milliseconds{2500});
    REQUIRE(told.size() == 1);
    CHECK(told[0] ==
          "names do not resolve in the guest: the host's name servers (/etc/resolv.conf) do not "
          "answer (127.0.0.99: Connection refused, 127.0.0.53: Connection refused)");
    f.client.send(asio::buffer("question", 8));
    f.context.run_for(std::chrono::milliseconds{300});
    CHECK(told.size() == 1);
    f.resolver = udp::socket{f.context, {asio::ip::make_address("127.0.0.53"), 53}};
    std::string query;
    udp::endpoint asker;
    answer_one(f, query, asker);
    f.client.send(asio::buffer("question", 8));
    f.context.run_for(std::chrono::milliseconds{300});
    CHECK(told == std::vector<std::string>{told[0], ""});
}

TEST_CASE("resolvers are asked for the root, and three silences are told of") {
    std::vector<std::string> told;
    Fixture f{[&](const std::string& why) { told.push_back(why); }};
    std::string query;
    udp::endpoint asker;
    answer_one(f, query, asker);
    f.context.run_for(std::chrono::milliseconds{300});
    // NS of the root, in class IN (RFC 1035, section 4.1.2).
    CHECK(query.substr(12) == std::string{"\x00\x00\x02\x00\x01", 5});
    for (int queries = 0; queries < 3; ++queries) {
        CHECK(told.empty());
        f.client.send(asio::buffer("question", 8));
        f.context.run_for(std::chrono::milliseconds{2200});
    }
    REQUIRE(told.size() == 1);
    CHECK(told[0].ends_with("(127.0.0.99: Connection refused, 127.0.0.53: no answer)"));
}

TEST_CASE("a relay that is destroyed leaves nothing to wait for") {
    Fixture f;
    f.tcp_client.close();
    f.context.poll();
    f.relay.reset();
    f.context.run_for(std::chrono::seconds{10});
    CHECK(f.context.stopped());
}
