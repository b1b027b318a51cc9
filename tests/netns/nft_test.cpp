#include "netns/nft.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <optional>

#include "netns/error.h"
#include "oracle.h"

using namespace qvm::netns;
using namespace qvm::netns::nft;
using qvm::UniqueFd;
namespace ip = boost::asio::ip;

namespace {

const Table example{
    .name = "example",
    .owned = true,
    .chains = {{Chain::Hook::prerouting_nat,
                {{InputInterface{"up0"}, DestinationNetwork{ip::make_network_v4("10.213.0.1/32")},
                  Dnat{ip::make_address_v4("192.168.26.10")}},
                 {InputInterface{"up0"}, DestinationNetwork{ip::make_network_v4("10.213.1.0/24")},
                  DnatPrefix{ip::make_network_v4("192.168.27.0/24")}}}},
               {Chain::Hook::prerouting_filter,
                {{InputInterface{"qvm-1"}, Established{}, Accept{}},
                 {InputInterface{"qvm-1"}, Icmpv6Type{135}, Accept{}},
                 {InputInterface{"qvm-1"}, LocalDestination{}, Reject{}}}},
               {Chain::Hook::forward_filter,
                {{InputInterface{"qvm-1"}, DestinationPort{4321}, Trace{}},
                 {InputInterface{"qvm-1"}, ClampMss{}},
                 {InputInterface{"qvm-1"}, Accept{}},
                 {OutputInterface{"qvm-1"}, Established{}, Accept{}},
                 {OutputInterface{"qvm-1"}, Drop{}}}},
               {Chain::Hook::postrouting_nat,
                {{SourceNetwork{ip::make_network_v4("192.168.26.0/24")}, OutputInterface{"up0"},
                  Masquerade{}},
                 {SourceNetwork{ip::make_network_v4("10.213.0.1/32")},
                  OutputInterface{"qvm-1", true}, Masquerade{}},
                 {SourceNetwork{ip::make_network_v6("fd71:766d:26::/64")}, Masquerade{}},
                 {SourceNetwork{Network{ip::make_address("fd71::1")}}, Masquerade{}},
                 {SourceNetwork{ip::make_network_v6("fe80::/10")}, Masquerade{}},
                 {SourceNetwork{ip::make_network_v4("10.16.0.0/12")}, Masquerade{}}}}}};

const Table guard{
    .name = "guard",
    .family = Family::netdev,
    .owned = true,
    .chains = {{Chain::Hook::ingress,
                {{EtherSource{"52:54:00:a8:1a:0a", true}, Drop{}},
                 {ArpSender{"52:54:00:a8:1a:0a", ip::make_address_v4("192.168.26.10")}, Accept{}},
                 {SourcePort{67}, Drop{}},
                 {SourceNetwork{ip::make_network_v4("192.168.26.10/32")}, Accept{}},
                 {Icmpv6Type{134}, Drop{}},
                 {Icmpv6Type{136}, NeighborTarget{ip::make_network_v6("fd71:766d:26::/64")},
                  NeighborTarget{ip::make_network_v6("fd71:766d:26::a/128"), true}, Drop{}},
                 {SourceNetwork{ip::make_network_v6("fd71:766d:26::/64")}, Accept{}},
                 {Drop{}}},
                "lo"}}};

/// Two spellings of one ruleset differ in white space and in the owner's remark only.
std::string words(std::string text) {
    std::istringstream stream{text.erase(0, text.find("table"))};
    std::string result, word;
    while (stream >> word) {
        if (word == "#")
            std::getline(stream, word);
        else if (word == ";")
            continue;
        else
            result += (word.ends_with(';') ? word.substr(0, word.size() - 1) : word) + ' ';
    }
    return result;
}

}  // namespace

TEST_CASE("a table of a thousand rules, and errors of the transaction before told to nobody") {
    Table table{.name = "qvm-large", .chains = {{Chain::Hook::forward_filter, {}}}};
    for (int i = 0; i < 1000; ++i)
        table.chains[0].rules.push_back({Ipv4Packet{}, InputInterface{"eth" + std::to_string(i)},
                                         OutputInterface{"qvm-*", true}, Drop{}});
    Socket socket;
    socket.commit(table);
    CHECK_THROWS_AS(socket.commit(table), Error);
    socket.replace(table);
    CHECK_THAT(oracle::sh("nft list table inet qvm-large"),
               Catch::Contains(R"(iifname "eth999" oifname != "qvm-*" drop)"));
    socket.remove("qvm-large");
    CHECK(oracle::sh("nft list tables").empty());
}

TEST_CASE("what is committed is what the text says, as nft reads it back") {
    Socket socket;
    socket.commit(example);
    CHECK(words(oracle::sh("nft -y list table inet example | sed 's/priority -150/priority "
                           "mangle/; s/priority -100/priority dstnat/; "
                           "s/priority 100/priority srcnat/; s/priority 0/priority filter/'")) ==
          words(to_text(example)));
}

TEST_CASE("the text is what nft -f takes") {
    for (auto table : {example, guard}) {
        table.owned = false;
        oracle::sh("cat > /tmp/qvm-nft-$PPID <<'END'\n" + to_text(table) +
                   "\nEND\nnft -f /tmp/qvm-nft-$PPID; e=$?; rm /tmp/qvm-nft-$PPID; exit $e");
        const auto name = table.family == Family::inet ? "inet example" : "netdev guard";
        CHECK(oracle::sh("nft list tables") == fmt::format("table {}\n", name));
        oracle::sh(fmt::format("nft delete table {}", name));
    }
}

TEST_CASE("a guard is what its text says, too") {
    Socket socket;
    socket.commit(guard);
    CHECK(
        words(oracle::sh("nft -y list table netdev guard | sed 's/priority 0/priority filter/'")) ==
        words(to_text(guard)));
}

TEST_CASE("a table takes the place of the one before it, and needs none") {
    Socket socket;
    socket.replace({.name = "again", .chains = {{Chain::Hook::forward_filter, {{Drop{}}}}}});
    socket.replace({.name = "again", .chains = {{Chain::Hook::forward_filter, {{Reject{}}}}}});
    const auto text = oracle::sh("nft list table inet again");
    CHECK(text.find("drop") == std::string::npos);
    CHECK(text.find("reject") != std::string::npos);
    oracle::sh("nft delete table inet again");
}

TEST_CASE("a table that exists is refused, not adopted") {
    Socket first, second;
    first.commit({.name = "twice", .owned = true, .chains = {}});
    CHECK_THROWS_WITH(second.commit({.name = "twice", .owned = true, .chains = {}}),
                      Catch::Contains("create nftables table 'inet twice'"));
}

TEST_CASE("a table is removed through the socket that owns it, or a duplicate of that") {
    std::optional<Socket> first;
    first.emplace().commit({.name = "gone", .owned = true, .chains = example.chains});
    Socket second{UniqueFd{::fcntl(first->fd(), F_DUPFD_CLOEXEC, 0)}};
    first.reset();
    CHECK(oracle::sh("nft list tables") == "table inet gone\n");
    CHECK_THROWS_WITH(Socket{}.remove("gone"),
                      Catch::Contains("delete nftables table 'inet gone'"));
    second.remove("gone");
    CHECK(oracle::sh("nft list tables").empty());
    CHECK_THROWS_WITH(second.remove("gone"), Catch::Contains("No such file or directory"));
}
