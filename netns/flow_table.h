#pragma once

#include <chrono>
#include <cstddef>
#include <list>
#include <map>
#include <optional>
#include <utility>

namespace qvm::netns {

/// Flows by their key, the longest idle first to go: after `idle`, or where there are `most`.
/// It owns the values, and what to do at an end is their destructor's. It has no clock: `now` never
/// goes back.
template <typename Key, typename Value>
class FlowTable {
  public:
    using Time = std::chrono::steady_clock::time_point;

    FlowTable(std::size_t most, std::chrono::steady_clock::duration idle)
        : most_(most), idle_(idle) {}

    /// The flow of `key`, which is in use now; null where there is none. Valid until it goes.
    Value* find(const Key& key, Time now) {
        const auto found = by_key_.find(key);
        if (found == by_key_.end()) return nullptr;
        const auto flow = found->second;
        flow->used = now;
        by_use_.splice(by_use_.end(), by_use_, flow);
        return &flow->value;
    }

    /// Adds a flow whose key is new; where the table is full the longest idle one goes.
    Value& insert(const Key& key, Value value, Time now) {
        if (by_use_.size() >= most_) drop_oldest();
        by_use_.push_back({key, std::move(value), now});
        by_key_.emplace(key, std::prev(by_use_.end()));
        return by_use_.back().value;
    }

    /// Drops what was idle for too long.
    void expire(Time now) {
        while (!by_use_.empty() && by_use_.front().used + idle_ <= now) drop_oldest();
    }

    /// When expire() will have something to do at the earliest.
    [[nodiscard]] std::optional<Time> next_expiry() const {
        if (by_use_.empty()) return std::nullopt;
        return by_use_.front().used + idle_;
    }

    [[nodiscard]] std::size_t size() const noexcept { return by_use_.size(); }

  private:
    struct Flow {
        Key key;
        Value value;
        Time used;
    };

    void drop_oldest() {
        by_key_.erase(by_use_.front().key);
        by_use_.pop_front();
    }

    std::size_t most_;
    std::chrono::steady_clock::duration idle_;
    std::list<Flow> by_use_;  ///< the longest idle first
    std::map<Key, typename std::list<Flow>::iterator> by_key_;
};

}  // namespace qvm::netns
