#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <functional>
#include <optional>
#include <string>

#include "launcher/console_text.h"
#include "launcher/process.h"
#include "netns/unique_fd.h"

namespace qvm {

/// Takes a line for the user ("network is up").
using Report = std::function<void(const std::string&)>;

/// Collects a child's stderr and keeps its end: the words for an error message.
class LastWords {
  public:
    explicit LastWords(const boost::asio::any_io_executor& executor) : pipe_(executor) {}

    /// Makes the pipe. Throws boost::system::system_error.
    void open();
    /// The child's stderr, to be closed here once the child has it.
    [[nodiscard]] int write_end() const noexcept { return write_end_.get(); }
    void close_write_end() { write_end_.reset(); }

    /// Runs until the child has closed its end.
    boost::asio::awaitable<void> collect(Report debug);
    /// The last line, or `otherwise` when it said nothing.
    [[nodiscard]] std::string text_or(const std::string& otherwise) const;

  private:
    boost::asio::posix::stream_descriptor pipe_;
    UniqueFd write_end_;
    LastLine lines_;
};

/// A child and what it says.
struct Process {
    explicit Process(const boost::asio::any_io_executor& executor) : words(executor) {}

    /// Starts it with `words` as its stderr. Throws Failure.
    void start(SpawnSpec spec);

    std::optional<Child> child;
    LastWords words;
};

}  // namespace qvm
