#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "netns/unique_fd.h"

/// Unix stream sockets in a directory of ours, whose path may be longer than sun_path (108 bytes).
namespace qvm {

/// A socket's address, by way of its directory's descriptor, which keeps it short.
class UnixAddress {
  public:
    explicit UnixAddress(const std::filesystem::path& path);
    [[nodiscard]] const sockaddr* get() const {
        return reinterpret_cast<const sockaddr*>(&address_);
    }
    [[nodiscard]] socklen_t size() const { return sizeof address_; }
    /// Whether the directory is there.
    [[nodiscard]] bool valid() const { return static_cast<bool>(directory_); }

  private:
    UniqueFd directory_;
    sockaddr_un address_{};
};

/// A listening socket, non-blocking, mode 0600; what is in its place is replaced. Throws Failure.
UniqueFd listen_on(const std::filesystem::path& path);

/// A connected, blocking socket; nothing where nobody listens, with errno as connect(2) left it.
std::optional<UniqueFd> connect_to(const std::filesystem::path& path);

/// The pid of the process at the other end, as it was when it began to listen (SO_PEERCRED).
pid_t peer_pid(int socket);

/// A message of at most 16 KiB with descriptors; those that are sent stay the sender's.
struct MessageWithFds {
    std::string text;
    std::vector<UniqueFd> fds;
};
/// Whether it was sent, as a whole.
bool send_with_fds(int socket, const std::string& text, const std::vector<int>& fds);
/// Waits at most `timeout_ms`; nothing at the end of the connection or of the time.
std::optional<MessageWithFds> receive_with_fds(int socket, int timeout_ms);

}  // namespace qvm
