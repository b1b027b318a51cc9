#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "host.h"
#include "netns/error.h"
#include "netns/namespace.h"
#include "netns/port_forward.h"

/// What both benchmarks of published ports use.
namespace bench {

using namespace qvm::netns;
namespace asio = boost::asio;
namespace ip = boost::asio::ip;
using ip::tcp;

inline void exchange(tcp::socket& socket) {
    char byte = 0;
    asio::write(socket, asio::buffer(&byte, 1));
    asio::read(socket, asio::buffer(&byte, 1));
}

/// Runs `work` in a process of its own, in `space`, which ends with us.
template <typename Work>
pid_t start(const Namespace& space, Work work) {
    const auto pid = check(::fork(), "fork");
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
        check(::setns(space.fd(), CLONE_NEWNET), "enter namespace");
        work();
    } catch (const std::exception& failure) {
        std::fprintf(stderr, "bench: %s\n", failure.what());
    }
    ::_exit(1);
}

inline void end(pid_t pid) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
}

/// PortForwards on a thread of their own.
class Serving {
  public:
    /// `guest` is reached from `space`.
    Serving(const Namespace& space, const tcp::endpoint& guest) {
        auto port = bind_port(Protocol::tcp, ip::address_v4::loopback(), 0);
        endpoint = {ip::address_v4::loopback(), port.port};
        std::vector<Publication> publications;
        publications.push_back({std::move(port), guest.address().to_v4(), guest.port()});
        forwards_.emplace(context_.get_executor(), space, std::move(publications));
        thread_ = std::jthread([this] { context_.run(); });
    }
    Serving(const Serving&) = delete;
    Serving& operator=(const Serving&) = delete;
    ~Serving() { context_.stop(); }

    tcp::endpoint endpoint;

  private:
    asio::io_context context_;
    std::optional<PortForwards> forwards_;
    std::jthread thread_;
};

}  // namespace bench
