// A connection is two Splices, one a way, and each waits for one thing at a time. Plain handlers
// and no coroutines: a handler that waits is 200 bytes, and a connection is mostly idle.
//
//   connecting   the guest's SYN is on its way; the client's bytes wait in the kernel
//   open         both ways go on
//   half closed  one way has ended, which was passed on as a FIN; the other goes on
//   closed       both ways have ended, or one end failed and both were reset
#include "netns/tcp_forward.h"

#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <type_traits>
#include <utility>

namespace qvm::netns {

namespace asio = boost::asio;
using asio::posix::stream_descriptor;
using boost::system::error_code;

namespace {

constexpr std::chrono::milliseconds pause_time{100};
// Connections taken up in one go, before those that there are get their turn.
constexpr int most_accepts = 64;

void set_no_delay(int fd) {
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// Urgent data becomes a part of the stream, in its place: splice(2) cannot pass it on.
void take_urgent_data_inline(int fd) {
    const int on = 1;
    ::setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
}

/// A client that went without a word, behind a NAT that forgot it, does not stay for ever. Not for
/// a guest's end: one that is paused does not answer.
void set_keep_alive(int fd) {
    const int on = 1;
    const int idle_s = 120;
    const int interval_s = 30;
    ::setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
}

/// Closing will send RST: what a peer that is not there would answer.
void set_reset(int fd) {
    const linger at_once{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

/// The error that a socket has met since this was last asked.
int pending_error(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
    return error;
}

}  // namespace

class TcpForward::Connection : public std::enable_shared_from_this<Connection> {
    struct End {
        explicit End(const asio::any_io_executor& executor) : fd(executor) {}

        bool adopt(UniqueFd socket) {
            error_code error;
            fd.assign(socket.get(), error);
            if (!error) (void)socket.release();
            return !error;
        }

        stream_descriptor fd;
        bool watched = false;
    };
    struct Way {
        End& from;
        End& to;
        Splice splice = {};
        bool ended = false;
    };

    /// A handler that calls `member` while the connection is still there.
    template <typename... Arguments>
    auto unless_gone(void (Connection::*member)(Arguments...),
                     std::type_identity_t<Arguments>... arguments) {
        return [weak = weak_from_this(), member, arguments...](const error_code& error) {
            const auto self = weak.lock();
            if (!self || self->closed_) return;
            if (error) return self->fail();
            (self.get()->*member)(arguments...);
        };
    }

  public:
    explicit Connection(TcpForward& owner)
        : owner_(owner),
          client_(owner.listener_.get_executor()),
          guest_(owner.listener_.get_executor()) {}
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection() {
        if (!closed_) close_with_reset();
    }

    void start(UniqueFd client, UniqueFd guest, const asio::ip::tcp::endpoint& address) {
        if (!client_.adopt(std::move(client)) || !guest_.adopt(std::move(guest))) return fail();
        for (const int fd : {client_.fd.native_handle(), guest_.fd.native_handle()}) {
            set_no_delay(fd);
            take_urgent_data_inline(fd);
        }
        set_keep_alive(client_.fd.native_handle());
        if (::connect(guest_.fd.native_handle(), address.data(),
                      static_cast<socklen_t>(address.size())) == 0)
            return open();
        if (errno != EINPROGRESS) return fail();
        watch(client_);
        guest_.fd.async_wait(stream_descriptor::wait_write, unless_gone(&Connection::connected));
    }

  private:
    void connected() {
        if (pending_error(guest_.fd.native_handle()) != 0) return fail();
        open();
    }

    void open() {
        advance(&to_guest_);
        if (!closed_) advance(&to_client_);
    }

    void advance(Way* way) {
        switch (way->splice.advance(way->from.fd.native_handle(), way->to.fd.native_handle(),
                                    owner_.pipes_)) {
            case Splice::Next::readable:
                way->from.fd.async_wait(stream_descriptor::wait_read,
                                        unless_gone(&Connection::advance, way));
                return;
            case Splice::Next::writable:
                watch(way->from);
                way->to.fd.async_wait(stream_descriptor::wait_write,
                                      unless_gone(&Connection::advance, way));
                return;
            case Splice::Next::pipe:
                return advance_later(way);
            case Splice::Next::end:
                return end(way);
            case Splice::Next::failed:
                return fail();
        }
    }

    void advance_later(Way* way) {
        owner_.sockets_.clear();
        const auto timer =
            std::make_shared<asio::steady_timer>(client_.fd.get_executor(), pause_time);
        timer->async_wait([timer, handler = unless_gone(&Connection::advance, way)](
                              const error_code& error) { handler(error); });
    }

    void end(Way* way) {
        way->ended = true;
        ::shutdown(way->to.fd.native_handle(), SHUT_WR);
        if (to_guest_.ended && to_client_.ended) return close();
        watch(way->from);
    }

    /// A reset by an end that nobody reads from is passed on, too.
    void watch(End& end) {
        if (std::exchange(end.watched, true)) return;
        end.fd.async_wait(stream_descriptor::wait_error,
                          unless_gone(&Connection::look_at_error, &end));
    }

    void look_at_error(End* end) {
        const int fd = end->fd.native_handle();
        if (pending_error(fd) != 0) return fail();
        pollfd state{fd, POLLPRI, 0};
        ::poll(&state, 1, 0);
        // A hangup without an error: both ways of this end are shut, which the other one's Splice
        // will see.
        if ((state.revents & ~POLLPRI) != 0) return;
        end->watched = false;
        // Urgent data: it would be reported again at once. Nothing: this was for a descriptor that
        // had the same number.
        if (state.revents == 0) watch(*end);
    }

    void fail() {
        close_with_reset();
        owner_.connections_.erase(shared_from_this());
    }

    void close_with_reset() {
        set_reset(client_.fd.native_handle());
        set_reset(guest_.fd.native_handle());
        close_both();
    }

    void close() {
        close_both();
        owner_.connections_.erase(shared_from_this());
    }

    void close_both() {
        closed_ = true;
        error_code ignored;
        client_.fd.close(ignored);
        guest_.fd.close(ignored);
    }

    TcpForward& owner_;
    End client_;
    End guest_;
    Way to_guest_{client_, guest_};
    Way to_client_{guest_, client_};
    bool closed_ = false;
};

TcpForward::TcpForward(const asio::any_io_executor& executor, UniqueFd listener,
                       const asio::ip::tcp::endpoint& guest, SpareSockets& sockets, PipePool& pipes)
    : listener_(executor, listener.get()),
      guest_(guest),
      sockets_(sockets),
      pipes_(pipes),
      pause_(executor) {
    (void)listener.release();
}

TcpForward::~TcpForward() = default;

void TcpForward::start() {
    wait();
}

void TcpForward::wait() {
    listener_.async_wait(stream_descriptor::wait_read,
                         [weak = weak_from_this()](const error_code& error) {
                             const auto self = weak.lock();
                             if (self && !error) self->accept_some();
                         });
}

void TcpForward::accept_some() {
    auto accepted = Accepted::one;
    for (int i = 0; i < most_accepts && accepted == Accepted::one; ++i) accepted = accept_one();
    if (accepted == Accepted::not_now) return pause();
    wait();
}

TcpForward::Accepted TcpForward::what_failed(int error) {
    switch (error) {
        case EAGAIN:
            return Accepted::all;
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM:
            return Accepted::not_now;
        default:
            return Accepted::one;  // it ended before it was accepted
    }
}

TcpForward::Accepted TcpForward::accept_one() {
    // First what the connection needs: a client that cannot be served waits to be accepted.
    if (!sockets_.prepare()) return Accepted::not_now;
    UniqueFd client{
        ::accept4(listener_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
    if (!client) return what_failed(errno);
    const auto connection = std::make_shared<Connection>(*this);
    connections_.insert(connection);
    connection->start(std::move(client), sockets_.take(), guest_);
    return Accepted::one;
}

/// Accepting again at once would fail again at once.
void TcpForward::pause() {
    sockets_.clear();
    pause_.expires_after(pause_time);
    pause_.async_wait([weak = weak_from_this()](const error_code& error) {
        const auto self = weak.lock();
        if (self && !error) self->accept_some();
    });
}

}  // namespace qvm::netns
