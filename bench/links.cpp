// bench_links [ROUNDS]: 100 veths with their peers in 100 namespaces, and the ways to be rid of
// them: the namespaces fall and take them along, or the host ends are deleted first, one after the
// other, all at the same moment, or as a group with one request. Root; the host is a namespace of
// this program's own.
#include "netns/links.h"

#include <linux/rtnetlink.h>
#include <net/if.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <latch>
#include <thread>

#include "host.h"
#include "measure.h"
#include "netns/namespace.h"

using namespace qvm::netns;

namespace {

constexpr int size = 100;
constexpr int inner_index = 100;
constexpr unsigned mtu = 1500;
constexpr std::uint32_t group = 100;

struct Veth {
    Namespace space;
    std::string name;
    int index;
};

using Veths = std::vector<Veth>;

Request group_request(int type, int index, std::string step) {
    ifinfomsg link{};
    link.ifi_index = index;
    NlMessage message{nlmsg_alloc_simple(type, 0)};
    nlmsg_append(message.get(), &link, sizeof link, NLMSG_ALIGNTO);
    nla_put_u32(message.get(), IFLA_GROUP, group);
    return {std::move(message), std::move(step)};
}

Request join_group(int index) {
    return group_request(RTM_NEWLINK, index, "put a link into a group");
}

Request delete_group() {
    return group_request(RTM_DELLINK, 0, "delete a group of links");
}

void transact(RouteSocket& socket, Request request) {
    std::vector<Request> one;
    one.push_back(std::move(request));
    socket.transact(std::move(one));
}

/// A namespace with one end of a veth, the host with the other, both up.
Veth make_veth(RouteSocket& host, int number) {
    const auto host_space = Namespace::current();
    auto name = "qvm-" + std::to_string(number);
    auto space = Namespace::create([&] {
        std::vector<Request> requests;
        requests.push_back(add_veth("up0", inner_index, name, host_space.fd(), mtu));
        requests.push_back(set_up("up0", inner_index));
        RouteSocket{}.transact(std::move(requests));
    });
    const int index = static_cast<int>(::if_nametoindex(name.c_str()));
    std::vector<Request> requests;
    requests.push_back(set_up(name, index));
    requests.push_back(join_group(index));
    host.transact(std::move(requests));
    return {std::move(space), std::move(name), index};
}

Veths make_veths(RouteSocket& host) {
    Veths veths;
    for (int i = 0; i < size; ++i) veths.push_back(make_veth(host, i));
    return veths;
}

void delete_in_turn(RouteSocket& host, const Veths& veths) {
    for (const auto& veth : veths) transact(host, delete_link(veth.name, veth.index));
}

/// As 100 supervisors do.
void delete_at_once(const Veths& veths) {
    std::latch ready{size};
    std::vector<std::jthread> threads;
    for (const auto& veth : veths)
        threads.emplace_back([&] {
            RouteSocket host;
            ready.arrive_and_wait();
            transact(host, delete_link(veth.name, veth.index));
        });
}

/// ms until the host sees no link. The kernel destroys namespaces in the order in which they fell,
/// long after they are gone from sight; those of another one that falls last tell when it is done.
class Gone {
  public:
    explicit Gone(RouteSocket& host) : host_(host) {}
    template <typename Work>
    void measure(const std::string& name, Veths veths, Work delete_links) {
        const auto start = bench::Clock::now();
        delete_links(veths);
        veths.clear();
        bench::await_no_links();
        links_.add(name, bench::since(start));
        { const auto last = make_veth(host_, size); }
        bench::await_no_links();
        spaces_.add(name, bench::since(start));
    }
    void print() const {
        links_.print("until no link is on the host; ms");
        spaces_.print("until the kernel has done with all; ms");
    }

  private:
    RouteSocket& host_;
    bench::Table links_, spaces_;
};

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
    bench::become_host();
    RouteSocket host;
    Gone gone{host};
    for (int round = 0; round < rounds; ++round) {
        gone.measure("the namespaces fall", make_veths(host), [](const Veths&) {});
        gone.measure("one after the other is deleted, then", make_veths(host),
                     [&](const Veths& veths) { delete_in_turn(host, veths); });
        gone.measure("all are deleted at the same moment, then", make_veths(host), delete_at_once);
        gone.measure("a group is deleted, then", make_veths(host),
                     [&](const Veths&) { transact(host, delete_group()); });
    }
    std::printf("%d rounds, %d veths\n\n", rounds, size);
    gone.print();
}
