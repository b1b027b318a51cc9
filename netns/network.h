#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "netns/forwarding.h"
#include "netns/host_network.h"
#include "netns/namespace.h"
#include "netns/nft.h"
#include "netns/plan.h"
#include "netns/probe.h"
#include "netns/route_socket.h"
#include "netns/tap.h"
#include "netns/unique_fd.h"

namespace qvm::netns {

/// A plan made real. Everything that it created hangs on descriptors of this object: when they
/// close, by the destructor or by SIGKILL, the kernel takes the namespace, the links and the rules
/// back. Only a forwarding setting of the host is left to the next sweep_forwarding() then.
///
/// A network that is shared hangs on the descriptors of all that share it: the last one to close
/// them takes it with it.
class Network {
  public:
    /// Carries out `plan` in a new namespace, with a TAP for `guest`. `host` belongs to the host's
    /// namespace and must outlive this object; `forwarding_directory` is ForwardingLease's;
    /// `namespace_ready` is called, on another thread, when the namespace exists and is still
    /// empty. Throws Error, and then nothing is left.
    Network(const NetworkPlan& plan, const GuestPlan& guest, Claims claims, RouteSocket& host,
            const std::filesystem::path& forwarding_directory,
            const std::function<void()>& namespace_ready = {});
    /// Joins a network that exists: `shared` are duplicates of another member's shared(), in that
    /// order. Throws Error.
    Network(const NetworkPlan& plan, const GuestPlan& guest, std::vector<UniqueFd> shared,
            RouteSocket& host, const std::filesystem::path& forwarding_directory);
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;
    /// Detaches what this object has made. From those who were joined nothing is taken, unless
    /// detach() said so.
    ~Network();

    /// What another process needs to share this network. Owned by this object.
    [[nodiscard]] std::vector<int> shared() const;

    /// The TAP's descriptors, one a queue, and vhost's beside them (empty without vhost). They are
    /// given away: QEMU is to be their only holder, so that its end is the TAP's end.
    [[nodiscard]] std::vector<UniqueFd> take_tap() { return std::move(tap_.queues); }
    [[nodiscard]] std::vector<UniqueFd> take_vhost() { return std::move(vhost_); }

    /// Sockets bound to 127.0.0.1, dns_relay_port, inside the namespace (UDP, and TCP listening);
    /// unset without an uplink and where this network was joined. Given away.
    struct DnsSockets {
        UniqueFd udp;
        UniqueFd tcp;
    };
    [[nodiscard]] DnsSockets take_dns() { return std::move(dns_); }
    /// Binds them anew, when the member that had them is gone. Throws Error.
    void bind_dns();

    [[nodiscard]] const Namespace& space() const noexcept { return space_; }

    /// Brings the uplink in line with the host as it is now: forwarding is on for the interface
    /// that leads outside, and the host end's address and routes are there. To be called when the
    /// host's network changed. Returns why the guests do not reach the outside, for people; empty
    /// where they do. Throws Error, after which it is to be tried again. Waits for nobody.
    std::string follow_host();

    /// Whether what guests send gets out of the host, first by IPv4 and then by IPv6: what ends it.
    /// Nothing where it does, or where there is no uplink or the host has no way to the outside.
    /// Needs privilege on the host. See probe.h. Throws Error.
    std::optional<Obstacle> probe(std::chrono::milliseconds patience);

    /// Removes what the host can see of the network (the veth, the rules) at once, before the
    /// namespace itself falls; the kernel needs 50 ms and more for that on its own. Idempotent.
    void detach() noexcept;
    /// Of a group: this member is the one that keeps the host's rules up to date from now on.
    /// Throws Error.
    void lead();
    /// Others stay: neither detach() nor the destructor takes anything from them.
    void leave_to_others() noexcept { host_link_index_ = 0; }

  private:
    Namespace create_space(const NetworkPlan& plan, const GuestPlan& guest,
                           const std::function<void()>& namespace_ready);
    void prepare_host(const NetworkPlan& plan);
    void lease_forwarding(const std::vector<std::string>& ways,
                          const std::vector<std::string>& ways6,
                          std::chrono::milliseconds patience);
    void build_inside(const NetworkPlan& plan, const GuestPlan& guest, const Namespace& host_space);
    void add_tap(const NetworkPlan& plan, const GuestPlan& guest);
    std::vector<Request> open_port(const NetworkPlan& plan, const GuestPlan& guest);
    void close_host();
    void build_uplink();
    void enable_host_link();
    [[nodiscard]] std::vector<Request> host_requests() const;
    [[nodiscard]] UplinkState look_at_host() const;
    void repair_host_end();
    void guard_ways();

    Claims claims_;
    RouteSocket& host_;
    Tap tap_;
    std::vector<UniqueFd> vhost_;
    DnsSockets dns_;
    NetworkPlan plan_;
    std::optional<UplinkPlan>& uplink_ = plan_.uplink;
    std::vector<boost::asio::ip::address> closed_;  ///< what guests of pasta do not reach
    int host_link_index_ = 0;                       ///< 0 while there is none
    // Kept until the end: closing one soon after a change waits for an RCU grace period (8 ms).
    std::optional<nft::Socket> inner_rules_;
    std::optional<nft::Socket> host_rules_;
    std::optional<ProbeSockets> probe_sockets_;  ///< not host_rules_, which a group shares
    std::vector<UniqueFd> joined_;               ///< another member's claims
    ForwardingLeases forwarding_;
    ForwardingLeases forwarding6_;
    std::optional<Borrowed> borrowed_;  ///< as the host's table has it; of who was joined, nothing
    Namespace space_;  ///< last: what is made inside is stored in the members above
};

}  // namespace qvm::netns
