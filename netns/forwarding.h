#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "netns/unique_fd.h"

namespace qvm::netns {

/// Switches IPv4 forwarding on in the calling thread's namespace, for an interface that is ours or,
/// in a namespace that is ours, for "all". Throws Error.
void enable_forwarding(const std::string& interface = "all");
/// The same for IPv6; for an interface by force_forwarding (Linux 6.17), which leaves what it makes
/// of router advertisements as it is. Throws Error.
void enable_forwarding6(const std::string& interface = "all");

/// IPv4 forwarding (or IPv6 force_forwarding) of one interface that is not ours, held on while
/// anybody needs it and put back to what it was after the last one; unless the host itself forwards
/// by then, which it did not before ("all": what `sysctl net.ipv4.ip_forward` sets, and with it
/// every interface).
///
/// `directory` (made with the first lease, removed with the last) holds one file for every
/// interface whose setting was changed, by its index since names change, with what the setting of
/// "all" was, and every user keeps a shared lock on it; whoever gets the exclusive lock is the
/// last. The kernel drops locks with their holder, so after a SIGKILL the next sweep_forwarding()
/// puts the setting back.
class ForwardingLease {
  public:
    static constexpr std::chrono::milliseconds default_patience{10000};
    enum class Family { ipv4, ipv6 };

    /// Throws Error, also where another process is about to take or give one and does not come to
    /// its end in `patience`. The parent of `directory` must exist.
    ForwardingLease(const std::filesystem::path& directory, const std::string& interface,
                    std::chrono::milliseconds patience = default_patience,
                    Family family = Family::ipv4);
    ForwardingLease(ForwardingLease&&) = default;
    ForwardingLease& operator=(ForwardingLease&&) = delete;
    ~ForwardingLease();

    /// Whether it is for this interface, and still on: somebody else may have switched it off
    /// since. Throws Error.
    [[nodiscard]] bool is_on(const std::string& interface) const;

    /// Whether it is on by leases alone. Throws Error.
    [[nodiscard]] bool is_borrowed() const;

  private:
    Family family_;
    unsigned index_;
    std::filesystem::path file_;
    UniqueFd lock_;  ///< none where forwarding was on already
};

/// Leases of all ways that what a guest sends may take.
class ForwardingLeases {
  public:
    ForwardingLeases(std::filesystem::path directory, ForwardingLease::Family family)
        : directory_(std::move(directory)), family_(family) {}

    /// Has leases of these interfaces, all of them on, and of no others; those that are gone are
    /// passed over. Throws Error.
    void hold(const std::vector<std::string>& interfaces, std::chrono::milliseconds patience);
    /// Those that are on by leases alone. Throws Error.
    [[nodiscard]] std::vector<std::string> borrowed() const;

  private:
    std::filesystem::path directory_;
    ForwardingLease::Family family_;
    std::map<std::string, ForwardingLease> leases_;
};

/// Puts back what leases of dead processes left on, in this network namespace, and returns the
/// interfaces. A file that it cannot handle stays for the next sweep. Throws Error where
/// `directory` cannot be locked.
std::vector<std::string> sweep_forwarding(const std::filesystem::path& directory);

/// Whether the interface's setting is on only since a living process has a lease of it, in this
/// network namespace. Throws Error where `directory` cannot be locked.
bool is_forwarding_leased(const std::filesystem::path& directory, const std::string& interface);

}  // namespace qvm::netns
