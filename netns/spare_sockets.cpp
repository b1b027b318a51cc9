#include "netns/spare_sockets.h"

#include <sys/socket.h>

#include <algorithm>
#include <exception>

namespace qvm::netns {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t smallest_batch = 16;
constexpr std::size_t largest_batch = 256;
constexpr std::chrono::seconds moment{1};

}  // namespace

std::size_t next_batch(std::size_t last, Clock::duration elapsed) {
    if (elapsed > moment) return smallest_batch;
    return std::clamp(2 * last, smallest_batch, largest_batch);
}

bool SpareSockets::prepare() {
    if (free_.empty()) refill();
    return !free_.empty();
}

UniqueFd SpareSockets::take() {
    if (!prepare()) return {};
    auto socket = std::move(free_.back());
    free_.pop_back();
    return socket;
}

void SpareSockets::refill() {
    const auto now = Clock::now();
    if (now < retry_) return;
    batch_ = next_batch(batch_, now - filled_);
    filled_ = now;
    free_.reserve(batch_);
    try {
        space_.run([this] {
            while (free_.size() < batch_) {
                UniqueFd socket{::socket(AF_INET, type_ | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
                if (!socket) return;
                free_.push_back(std::move(socket));
            }
        });
    } catch (const std::exception&) {
        // No thread or no way in: as with no descriptors, there is no socket now.
    }
    // These were the last descriptors, and whoever takes a socket needs another one beside it.
    if (free_.size() < batch_) free_.resize(free_.size() / 2);
    if (free_.empty()) retry_ = now + retry_delay;
}

}  // namespace qvm::netns
