#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <functional>
#include <memory>
#include <string_view>

#include "netns/unique_fd.h"

namespace qvm {

/// Those who are attached to a console over its Unix socket, raw bytes both ways. All of them see
/// what the guest prints; what the first of them sends is for the guest, until it leaves.
class ConsoleClients {
  public:
    struct Handlers {
        std::function<std::string()> first_words;  ///< what a new client is shown
        /// Takes what the writer sent; false when the guest can take no more, ever.
        std::function<boost::asio::awaitable<bool>(std::string_view)> input;
    };

    /// Takes over `listener`, a listening Unix socket, and serves it on `executor`.
    ConsoleClients(const boost::asio::any_io_executor& executor, UniqueFd listener,
                   Handlers handlers);
    ConsoleClients(const ConsoleClients&) = delete;
    ConsoleClients& operator=(const ConsoleClients&) = delete;
    /// Disconnects all. What they had not read yet, the kernel still holds for them.
    ~ConsoleClients();

    /// Shows `bytes` to all. Who lags by more than max_backlog bytes is disconnected.
    void show(std::string_view bytes);
    [[nodiscard]] std::size_t count() const;

    static constexpr std::size_t max_backlog = 1024 * 1024;

  private:
    struct Client;
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace qvm
