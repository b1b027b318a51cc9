#include "netns/splice.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "netns/error.h"

namespace qvm::netns {

namespace {

constexpr std::size_t kept_from_the_start = 4;
// More than the 16 fragments that a pipe takes; what counts is their number and not their size.
constexpr std::size_t most_at_once = std::size_t{1} << 20;
// Less than this was all that the socket had: another look would find nothing.
constexpr std::size_t all_of_it = std::size_t{16} << 10;
constexpr int most_rounds = 8;

std::optional<Pipe> make_pipe() {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) return std::nullopt;
    return Pipe{UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

ssize_t move_bytes(int from, int to, std::size_t most) {
    ssize_t moved = 0;
    do moved = ::splice(from, nullptr, to, nullptr, most, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    while (moved < 0 && errno == EINTR);
    return moved;
}

/// splice(2) stops in front of urgent data, and says EAGAIN there; recv(2) does not.
ssize_t move_urgent_data(int from, int to) {
    if (::sockatmark(from) != 1) {
        errno = EAGAIN;
        return -1;
    }
    std::array<char, 4096> bytes;  // an empty pipe has room for that
    const auto got = ::recv(from, bytes.data(), bytes.size(), MSG_DONTWAIT);
    return got > 0 ? ::write(to, bytes.data(), static_cast<std::size_t>(got)) : got;
}

}  // namespace

PipePool::PipePool() {
    for (std::size_t i = 0; i < kept_from_the_start; ++i) {
        auto pipe = make_pipe();
        if (!pipe) throw Error("make pipes for published ports", errno);
        free_.push_back(std::move(*pipe));
    }
}

std::optional<Pipe> PipePool::take() {
    if (free_.empty()) return make_pipe();
    auto pipe = std::move(free_.back());
    free_.pop_back();
    return pipe;
}

void PipePool::give_back(Pipe pipe) {
    if (free_.size() < most) free_.push_back(std::move(pipe));
}

std::optional<Splice::Next> Splice::fill(int from, PipePool& pipes) {
    pipe_ = pipes.take();
    if (!pipe_) return Next::pipe;
    auto got = move_bytes(from, pipe_->write_end.get(), most_at_once);
    if (got < 0 && errno == EAGAIN) got = move_urgent_data(from, pipe_->write_end.get());
    if (got > 0) {
        held_ = static_cast<std::size_t>(got);
        return std::nullopt;
    }
    const int reason = errno;
    pipes.give_back(std::move(*pipe_));
    pipe_.reset();
    if (got == 0) return Next::end;
    errno = reason;
    return reason == EAGAIN ? Next::readable : Next::failed;
}

std::optional<Splice::Next> Splice::drain(int to) {
    while (held_ > 0) {
        const auto put = move_bytes(pipe_->read_end.get(), to, held_);
        if (put < 0) return errno == EAGAIN ? Next::writable : Next::failed;
        held_ -= static_cast<std::size_t>(put);
    }
    return std::nullopt;
}

Splice::Next Splice::advance(int from, int to, PipePool& pipes) {
    for (int round = 0; round < most_rounds; ++round) {
        if (held_ == 0)
            if (const auto next = fill(from, pipes)) return *next;
        const auto moved = held_;
        if (const auto next = drain(to)) return *next;
        pipes.give_back(std::move(*pipe_));
        pipe_.reset();
        if (moved < all_of_it) break;
    }
    return Next::readable;
}

}  // namespace qvm::netns
