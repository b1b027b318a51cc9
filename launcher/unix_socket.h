#pragma once

#include <sys/socket.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "netns/unique_fd.h"

/// Unix sockets in a directory of ours, whose path may be longer than sun_path (108 bytes).
namespace qvm {

/// A listening socket of that type (of socket(2)), non-blocking, mode 0600; what is in its place is
/// replaced. Throws Failure.
UniqueFd listen_on(const std::filesystem::path& path, int type = SOCK_STREAM);

/// A connected socket, which blocks unless `type` says otherwise; nothing where nobody listens,
/// with errno as connect(2) left it.
std::optional<UniqueFd> connect_to(const std::filesystem::path& path, int type = SOCK_STREAM);

/// Two sockets of that type, connected with each other. Throws Failure, with the step.
struct SocketPair {
    UniqueFd ours;
    UniqueFd theirs;
};
SocketPair make_socket_pair(const std::string& step, int type = SOCK_STREAM);

/// A message with descriptors; those that are sent stay the sender's.
inline constexpr std::size_t largest_message = 128 * 1024;  ///< bytes
struct MessageWithFds {
    std::string text;
    std::vector<UniqueFd> fds;
};
/// Whether it was sent, as a whole.
bool send_with_fds(int socket, const std::string& text, const std::vector<int>& fds);
/// Waits at most `timeout_ms`; nothing at the end of the connection or of the time.
std::optional<MessageWithFds> receive_with_fds(int socket, int timeout_ms);

}  // namespace qvm
