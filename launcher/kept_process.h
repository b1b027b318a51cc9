#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <memory>
#include <string>

#include "launcher/last_words.h"
#include "launcher/process.h"

namespace qvm {

/// A program that a network needs for as long as it has guests (dnsmasq, pasta): started again
/// whenever it ends, which must end no guest.
class KeptProcess {
  public:
    struct Handlers {
        Report debug;
        Report note;  ///< told of one that ended after it was up
        /// Told why, where it never comes up at all; without it there is no end of tries.
        std::function<void(const std::string&)> cannot;
    };

    /// Starts it. What `spec` borrows must outlive this object. Throws Failure.
    KeptProcess(const boost::asio::any_io_executor& executor, SpawnSpec spec, Handlers handlers);
    KeptProcess(const KeptProcess&) = delete;
    KeptProcess& operator=(const KeptProcess&) = delete;
    /// Ends it.
    ~KeptProcess();

    /// Sends a signal; nothing happens while it does not run.
    void signal(int number) noexcept;
    /// Has it killed, without waiting for it, and starts it no more.
    void stop() noexcept;

  private:
    struct State;
    std::shared_ptr<State> state_;
};

}  // namespace qvm
