#pragma once

#include <netlink/cache.h>
#include <netlink/msg.h>
#include <netlink/socket.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qvm::netns {

/// Calls a C library's destroying function from a unique_ptr.
template <auto Function>
struct Deleter {
    void operator()(auto* object) const noexcept { Function(object); }
};

using NlMessage = std::unique_ptr<nl_msg, Deleter<nlmsg_free>>;
using NlCache = std::unique_ptr<nl_cache, Deleter<nl_cache_free>>;

/// Calls `visit` with each object (T*, as rtnl_link*) of what was dumped; null is empty.
template <typename T, typename Visit>
void for_each(const NlCache& cache, Visit visit) {
    auto* object = cache ? nl_cache_get_first(cache.get()) : nullptr;
    for (; object != nullptr; object = nl_cache_get_next(object))
        visit(reinterpret_cast<T*>(object));
}

/// As rtnl_addr_alloc_cache(), for one family. For one of all families the kernel takes RTNL, the
/// lock of all network changes, behind which a host where many VMs end has a queue.
int alloc_address_cache(nl_sock* socket, int family, nl_cache** result);

/// One rtnetlink request and what it is for ("add bridge 'br0'"), so that a refusal names it.
struct Request {
    NlMessage message;
    std::string step;
};

/// Calls a function of libnl; Error where its result is negative. errno, where it was set, says
/// more than libnl's own errors, among which there is no EMFILE.
void nl_check(std::string_view step, const std::function<int()>& call);

/// An rtnetlink socket (rtnetlink(7)). It belongs to the namespace of the thread that opened it
/// and stays there whoever uses it.
class RouteSocket {
  public:
    /// Opens the socket in the calling thread's namespace. Throws Error.
    RouteSocket();

    /// Sends all requests in one message and waits for every acknowledgement. The kernel works
    /// them off in order and does not stop at a failure; the first failure is thrown as Error with
    /// its step and the kernel's own text.
    void transact(std::vector<Request> requests);

    /// libnl's socket, for one request; owned by this object. What a request before has left
    /// unread, one that failed in the middle, is not taken for the answer.
    [[nodiscard]] nl_sock* get() const noexcept;

  private:
    std::unique_ptr<nl_sock, Deleter<nl_socket_free>> socket_;
    unsigned sequence_ = 1;
};

}  // namespace qvm::netns
