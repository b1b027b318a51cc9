#include "launcher/unix_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <system_error>

#include "launcher/failure.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t most_fds = 16;

/// A socket's address, by way of its directory's descriptor, which keeps it short.
class UnixAddress {
  public:
    explicit UnixAddress(const fs::path& path)
        : directory_{::open(path.parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)} {
        const auto name =
            fmt::format("/proc/self/fd/{}/{}", directory_.get(), path.filename().string());
        address_.sun_family = AF_UNIX;
        if (name.size() < sizeof address_.sun_path) name.copy(address_.sun_path, name.size());
    }
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

}  // namespace

UniqueFd listen_on(const fs::path& path, int type) {
    const auto failed = [&] {
        return Failure(fmt::format("listen on '{}': {}", path.string(),
                                   std::generic_category().message(errno)));
    };
    const UnixAddress address{path};
    UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    if (!fd || !address.valid()) throw failed();
    ::unlink(path.c_str());
    // Its directory lets nobody else in; the mode is for those who look.
    const auto mask = ::umask(0177);
    const bool bound = ::bind(fd.get(), address.get(), address.size()) == 0;
    ::umask(mask);
    if (!bound || ::listen(fd.get(), SOMAXCONN) != 0) throw failed();
    return fd;
}

std::optional<UniqueFd> connect_to(const fs::path& path, int type) {
    const UnixAddress address{path};
    if (!address.valid()) return std::nullopt;
    UniqueFd fd{::socket(AF_UNIX, type | SOCK_CLOEXEC, 0)};
    if (!fd || ::connect(fd.get(), address.get(), address.size()) != 0) return std::nullopt;
    return fd;
}

SocketPair make_socket_pair(const std::string& step, int type) {
    std::array<int, 2> ends;
    if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) != 0)
        throw Failure(step + ": make sockets: " + std::generic_category().message(errno));
    return {UniqueFd{ends[0]}, UniqueFd{ends[1]}};
}

bool send_with_fds(int socket, const std::string& text, const std::vector<int>& fds) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(most_fds * sizeof(int))> control{};
    iovec data{const_cast<char*>(text.data()), text.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
        const auto bytes = fds.size() * sizeof(int);
        message.msg_control = control.data();
        message.msg_controllen = CMSG_SPACE(bytes);
        auto* header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(bytes);
        std::memcpy(CMSG_DATA(header), fds.data(), bytes);
    }
    return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

std::optional<MessageWithFds> receive_with_fds(int socket, int timeout_ms) {
    pollfd readable{socket, POLLIN, 0};
    if (::poll(&readable, 1, timeout_ms) != 1) return std::nullopt;
    std::string text(largest_message, '\0');
    alignas(cmsghdr) std::array<char, CMSG_SPACE(most_fds * sizeof(int))> control{};
    iovec data{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const auto size = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (size <= 0) return std::nullopt;
    text.resize(static_cast<std::size_t>(size));
    MessageWithFds result{std::move(text), {}};
    for (auto* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        const auto count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
            result.fds.emplace_back(fd);
        }
    }
    return result;
}

}  // namespace qvm
