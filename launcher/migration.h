#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/array.hpp>
#include <chrono>
#include <string>

#include "qmp/client.h"

namespace qvm {

/// What a machine is, beyond the command line that it was started with: what another QEMU must
/// agree in, which is to go on with its state.
struct MachineFacts {
    std::string qemu;     ///< version: "7.2.22"
    std::string machine;  ///< "pc-q35-7.2", whatever name it was asked for by
    /// Of the CPUs, as QEMU gives them to the guest: [{"cpuid": "7.0.EBX", "features": N}, ...]
    boost::json::array cpu;

    bool operator==(const MachineFacts&) const = default;
};

/// Why a machine `here` cannot go on with the state of one that was `saved`; empty where it can.
/// Pure.
std::string misfit(const MachineFacts& saved, const MachineFacts& here);

/// QEMU's migration to and from a file: the state of all devices, and memory unless that is in a
/// file of its own (capability x-ignore-shared; docs/devel/migration.rst, qapi/migration.json).
class Migration {
  public:
    /// `monitor` must outlive this object, whose coroutines run on `executor`. What gets no further
    /// for as long as `patience` is given up.
    Migration(const boost::asio::any_io_executor& executor, qmp::Client& monitor,
              std::chrono::milliseconds patience = std::chrono::seconds{30});

    /// What this QEMU and its machine are. Throws std::system_error and qmp::CommandError.
    boost::asio::awaitable<MachineFacts> facts();
    /// Writes the state to the file `fd` (borrowed), with the CPUs stopped; without the memory
    /// where that is a file of its own that others can read, which is said by `shared`. The
    /// machine can go on then. Throws Failure, std::system_error and qmp::CommandError.
    boost::asio::awaitable<void> save(int fd, bool shared);
    /// Reads it again, into a machine that was started with "-incoming defer". Throws what
    /// save() does.
    boost::asio::awaitable<void> load(int fd, bool shared);

    /// QEMU says MIGRATION: how far it is ("completed", "failed").
    void take_status(const qmp::Event& event);
    /// It will say nothing more.
    void close();

  private:
    boost::asio::awaitable<void> move(int fd, bool shared, const char* command);
    boost::asio::awaitable<void> set_up(bool shared);
    boost::asio::awaitable<void> until_it_can_go_on();

    qmp::Client& monitor_;
    boost::asio::steady_timer news_;  ///< cancelled when status_ has changed
    const std::chrono::milliseconds patience_;
    std::string status_;
    bool closed_ = false;
};

}  // namespace qvm
