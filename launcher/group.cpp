#include "launcher/group.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <set>
#include <thread>

#include "launcher/step.h"
#include "launcher/unix_socket.h"
#include "launcher/vm_state.h"
#include "netns/network.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;
namespace ip = boost::asio::ip;
namespace json = boost::json;
using asio::awaitable;
using asio::local::stream_protocol;
using namespace std::chrono_literals;

namespace {

constexpr auto no_throw = asio::as_tuple(asio::use_awaitable);
constexpr auto join_timeout = 10s;
constexpr auto retry_pause = 5ms;
constexpr auto long_pause = 1s;  // where the host is short of something
// The connection of a member that was killed ends a moment before its lock does.
constexpr std::array<std::chrono::milliseconds, 2> settle_pauses{100ms, 1s};
constexpr std::array group_files{"dhcp-hosts",  "dhcp-hosts.new",  "hosts",       "hosts.new",
                                 "resolv.conf", "resolv.conf.new", "leader.sock", "leader"};

std::string text_of(const json::object& object, const char* key) {
    return std::string{object.at(key).as_string()};
}

ip::address_v4 address_of(const json::object& object, const char* key) {
    return ip::make_address_v4(text_of(object, key));
}

netns::Mode mode_of(std::string_view text) {
    for (const auto mode : {netns::Mode::isolated, netns::Mode::nat, netns::Mode::flat})
        if (netns::to_string(mode) == text) return mode;
    throw Failure(fmt::format("unknown mode '{}'", text));
}

json::value to_json(const std::optional<netns::UplinkPlan>& uplink) {
    if (!uplink) return nullptr;
    json::object object{{"kind", to_string(uplink->kind)},
                        {"host_link", uplink->host_link},
                        {"interface", uplink->interface},
                        {"interface6", uplink->interface6},
                        {"ipv6", uplink->ipv6},
                        {"host_address", uplink->host_address.to_string()},
                        {"inner_address", uplink->inner_address.to_string()},
                        {"prefix_length", uplink->prefix_length},
                        {"guests", nullptr}};
    if (uplink->guests) object["guests"] = uplink->guests->to_string();
    return object;
}

netns::UplinkPlan uplink_from(const json::object& object) {
    netns::UplinkPlan uplink;
    if (text_of(object, "kind") == to_string(netns::UplinkKind::pasta))
        uplink.kind = netns::UplinkKind::pasta;
    uplink.host_link = text_of(object, "host_link");
    uplink.interface = text_of(object, "interface");
    uplink.interface6 = text_of(object, "interface6");
    uplink.ipv6 = object.at("ipv6").as_bool();
    uplink.host_address = address_of(object, "host_address");
    uplink.inner_address = address_of(object, "inner_address");
    uplink.prefix_length = object.at("prefix_length").to_number<unsigned>();
    if (object.at("guests").is_string())
        uplink.guests = ip::make_network_v4(text_of(object, "guests"));
    return uplink;
}

}  // namespace

std::string to_text(const netns::NetworkPlan& plan) {
    json::value subnet6;
    if (plan.subnet6) subnet6 = plan.subnet6->to_string();
    return json::serialize(json::object{{"mode", netns::to_string(plan.mode)},
                                        {"id", plan.id},
                                        {"mtu", plan.mtu},
                                        {"subnet", plan.subnet.to_string()},
                                        {"gateway", plan.gateway.to_string()},
                                        {"own_address", plan.own_address.to_string()},
                                        {"bridged", plan.bridged},
                                        {"subnet6", std::move(subnet6)},
                                        {"port_isolation", plan.port_isolation},
                                        {"allow_host", plan.allow_host},
                                        {"uplink", to_json(plan.uplink)}});
}

netns::NetworkPlan parse_network_plan(const std::string& text) {
    const auto value = json::parse(text);
    const auto& object = value.as_object();
    netns::NetworkPlan plan;
    plan.mode = mode_of(text_of(object, "mode"));
    plan.id = text_of(object, "id");
    plan.mtu = object.at("mtu").to_number<unsigned>();
    plan.subnet = ip::make_network_v4(text_of(object, "subnet"));
    plan.gateway = address_of(object, "gateway");
    plan.own_address = address_of(object, "own_address");
    plan.bridged = object.at("bridged").as_bool();
    if (object.at("subnet6").is_string())
        plan.subnet6 = ip::make_network_v6(text_of(object, "subnet6"));
    plan.port_isolation = object.at("port_isolation").as_bool();
    plan.allow_host = object.at("allow_host").as_bool();
    if (const auto* uplink = object.at("uplink").if_object()) plan.uplink = uplink_from(*uplink);
    return plan;
}

namespace {

std::vector<netns::GuestPlan> living_guests(const fs::path& run, const std::string& group,
                                            const std::string& besides, bool leaving_too) {
    std::vector<netns::GuestPlan> guests;
    for (const auto& vm : read_vms(run)) {
        const auto address = vm.text("net.address");
        if (vm.text("group") != group || vm.text("name") == besides || address.empty()) continue;
        if (vm.flag("leaving") && !leaving_too) continue;
        netns::GuestPlan guest;
        guest.name = vm.text("name");
        guest.address = ip::make_address_v4(address);
        guest.mac = vm.text("net.mac");
        guests.push_back(std::move(guest));
    }
    return guests;
}

}  // namespace

std::vector<netns::GuestPlan> group_guests(const fs::path& run, const std::string& group,
                                           const std::string& besides) {
    return living_guests(run, group, besides, false);
}

// --- a seat ------------------------------------------------------------------------------------

GroupSeat::GroupSeat(const Directories& directories, const std::string& group,
                     const std::string& vm)
    : run_(directories.run), group_(group), vm_(vm), directory_(directories.groups() / group) {
    make_private_directory(directories.run);
    make_private_directory(directories.groups());
    const auto deadline = std::chrono::steady_clock::now() + join_timeout;
    while (std::chrono::steady_clock::now() < deadline) {
        // Others who join may be waiting for an answer that does not come.
        if (!members_lock_) members_lock_ = try_lock_directory(directory_);
        if (!members_lock_) {
            std::this_thread::sleep_for(retry_pause);
            continue;
        }
        if (try_to_lead()) return;
        const auto left = deadline - std::chrono::steady_clock::now();
        if (try_to_join(static_cast<int>(left / 1ms))) return;
        std::this_thread::sleep_for(retry_pause);
    }
    throw Failure(fmt::format("--group '{}': join it: its members do not answer", group));
}

/// Where there are members, one of them is about to lead, and the network is theirs.
bool GroupSeat::try_to_lead() {
    auto lock = try_lock_file(directory_ / "leader");
    if (!lock || !group_guests(run_, group_, vm_).empty()) return false;
    leader_lock_ = std::move(*lock);
    listener_ = listen_on(directory_ / "leader.sock");
    return true;
}

bool GroupSeat::try_to_join(int timeout_ms) {
    auto connection = connect_to(directory_ / "leader.sock");
    if (!connection) return false;
    auto message = receive_with_fds(connection->get(), timeout_ms);
    if (!message || message->fds.empty()) return false;
    plan_ = parse_network_plan(message->text);
    shared_ = std::move(message->fds);
    connection_ = std::move(*connection);
    return true;
}

std::vector<netns::GuestPlan> GroupSeat::others() const {
    if (!plan_) return {};  // who is left of an earlier network is not in ours
    return living_guests(run_, group_, vm_, true);
}

GroupSeat::~GroupSeat() {
    if (directory_.empty()) return;  // moved from
    leader_lock_.reset();
    members_lock_.reset();
    try {
        sweep_group(directory_, vm_);
    } catch (const std::exception&) {
        // It is left to the next sweep.
    }
}

bool sweep_group(const fs::path& directory, const std::string& besides) {
    const auto guard = lock_soon(directory);
    if (!guard) return false;
    const auto leader = try_lock_file(directory / "leader");
    const auto run = directory.parent_path().parent_path();
    if (!leader || !group_guests(run, directory.filename().string(), besides).empty()) return false;
    const bool removed = remove_directory(directory, group_files);
    ::rmdir(directory.parent_path().c_str());  // when it was the last
    return removed;
}

// --- a member ---------------------------------------------------------------------------------

struct Group::State : std::enable_shared_from_this<State> {
    State(const asio::any_io_executor& executor_, GroupSeat seat_, const netns::NetworkPlan& plan,
          std::vector<int> shared_, Handlers handlers_)
        : executor(executor_),
          seat(std::move(seat_)),
          plan_text(to_text(plan)),
          shared(std::move(shared_)),
          handlers(std::move(handlers_)),
          acceptor(executor_),
          leader(executor_),
          settling(executor_) {}

    awaitable<void> mind();
    awaitable<void> follow();
    awaitable<void> take_over();
    awaitable<void> lead();
    bool works(const std::function<void()>& step) const;
    bool try_to_take_over();
    awaitable<void> serve();
    awaitable<void> serve(std::shared_ptr<stream_protocol::socket> member);
    void changed();
    void look_again(std::size_t pause);

    asio::any_io_executor executor;
    GroupSeat seat;
    std::string plan_text;
    std::vector<int> shared;
    Handlers handlers;
    stream_protocol::acceptor acceptor;
    stream_protocol::socket leader;
    asio::steady_timer settling;
    std::set<std::shared_ptr<stream_protocol::socket>> members;
    bool left = false;
};

awaitable<void> Group::State::mind() {
    const auto self = shared_from_this();
    if (seat.leader_lock_) {
        handlers.lead();  // the first start: what fails now fails the VM
    } else {
        while (!left && !seat.leader_lock_) {
            co_await follow();
            if (!left) co_await take_over();
        }
        if (left) co_return;
        asio::co_spawn(executor, lead(), asio::detached);
    }
    co_await serve();
}

bool Group::State::works(const std::function<void()>& step) const {
    try {
        step();
        return true;
    } catch (const std::exception& error) {
        handlers.failed(error.what());
        return false;
    }
}

awaitable<void> Group::State::lead() {
    const auto self = shared_from_this();
    asio::steady_timer pause{executor};
    while (!left && !works(handlers.lead)) {
        pause.expires_after(long_pause);
        co_await pause.async_wait(no_throw);
    }
}

/// Until the leader is gone. Its first message repeats what we have, and descriptors that nobody
/// asks the kernel for are closed by it.
awaitable<void> Group::State::follow() {
    in_step(fmt::format("follow the leader of group '{}'", seat.group_), [this] {
        leader = stream_protocol::socket{executor, stream_protocol{}, seat.connection_.get()};
        (void)seat.connection_.release();
    });
    boost::system::error_code ignored;
    leader.write_some(asio::buffer("\n", 1), ignored);
    std::array<char, 4096> buffer;
    for (;;) {
        const auto [error, size] = co_await leader.async_read_some(asio::buffer(buffer), no_throw);
        if (error) break;
    }
    if (!left) leader.close(ignored);
}

/// Until this member leads or follows a new leader. Whoever has the lock will listen, or die.
awaitable<void> Group::State::take_over() {
    asio::steady_timer pause{executor};
    while (!left) {
        bool led = false;
        const bool able = works([&] { led = try_to_take_over(); });
        if (led) co_return;
        if (auto connection = connect_to(seat.directory_ / "leader.sock")) {
            seat.connection_ = std::move(*connection);
            co_return;
        }
        if (able)
            pause.expires_after(retry_pause);
        else
            pause.expires_after(long_pause);
        co_await pause.async_wait(no_throw);
    }
}

/// Lets go of the lead again where it cannot listen.
bool Group::State::try_to_take_over() {
    auto lock = try_lock_file(seat.directory_ / "leader");
    if (!lock) return false;
    seat.listener_ = listen_on(seat.directory_ / "leader.sock");
    seat.leader_lock_ = std::move(*lock);
    return true;
}

awaitable<void> Group::State::serve() {
    in_step(fmt::format("lead group '{}'", seat.group_), [this] {
        acceptor.assign(stream_protocol{}, seat.listener_.get());
        (void)seat.listener_.release();
    });
    for (;;) {
        auto [error, member] = co_await acceptor.async_accept(no_throw);
        if (error == asio::error::operation_aborted || left) co_return;
        if (error) {  // for want of descriptors: it would fail again at once
            asio::steady_timer pause{executor, 1s};
            co_await pause.async_wait(no_throw);
            continue;
        }
        asio::co_spawn(executor,
                       serve(std::make_shared<stream_protocol::socket>(std::move(member))),
                       asio::detached);
    }
}

awaitable<void> Group::State::serve(std::shared_ptr<stream_protocol::socket> member) {
    const auto self = shared_from_this();
    members.insert(member);
    std::array<char, 64> buffer;
    bool open = send_with_fds(member->native_handle(), plan_text, shared);
    while (open) {
        const auto [error, size] = co_await member->async_read_some(asio::buffer(buffer), no_throw);
        open = !error;
        if (open) changed();
    }
    members.erase(member);
    changed();
}

void Group::State::changed() {
    if (left) return;
    works(handlers.changed);
    look_again(0);
}

void Group::State::look_again(std::size_t pause) {
    if (pause == settle_pauses.size()) return;
    settling.expires_after(settle_pauses.at(pause));
    settling.async_wait([self = shared_from_this(), pause](auto error) {
        if (error || self->left) return;
        const bool last = pause + 1 == settle_pauses.size();
        const bool done = self->works(self->handlers.changed);
        self->look_again(last && !done ? pause : pause + 1);
    });
}

Group::Group(const asio::any_io_executor& executor, GroupSeat seat, const netns::NetworkPlan& plan,
             std::vector<int> shared, Handlers handlers)
    : state_(std::make_shared<State>(executor, std::move(seat), plan, std::move(shared),
                                     std::move(handlers))) {}

awaitable<void> Group::mind() {
    return state_->mind();
}

bool Group::leave(const std::function<void()>& tell) {
    auto& state = *state_;
    if (state.left) return true;
    state.left = true;
    boost::system::error_code ignored;
    state.acceptor.close(ignored);
    state.settling.cancel();
    // One after the other. Who joins just now has the lock until its own state file says so.
    const auto turn = lock_soon(state.seat.directory_);
    tell();
    bool others = true;  // where that cannot be found out: the kernel takes back what is left
    state.works([&] {
        others = !turn || !group_guests(state.seat.run_, state.seat.group_, state.seat.vm_).empty();
    });
    state.seat.leader_lock_.reset();
    state.leader.close(ignored);
    for (const auto& member : state.members) member->close(ignored);
    return others;
}

Group::~Group() {
    leave();
}

}  // namespace qvm
