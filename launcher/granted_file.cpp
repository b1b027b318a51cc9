#include "launcher/granted_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstddef>
#include <cstring>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/seccomp.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace asio = boost::asio;

namespace {

constexpr std::uint32_t argument(std::size_t number) {
    // The lower half, little-endian.
    return static_cast<std::uint32_t>(offsetof(seccomp_data, args) +
                                      number * sizeof(std::uint64_t));
}

/// Every openat(..., O_RDWR) is ours to answer; libc's open() is that, and QEMU's own opens have
/// O_CLOEXEC besides.
constexpr std::array<sock_filter, 8> filter{{
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, own_architecture, 0, 5),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument(2)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, O_RDWR, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
}};

bool send_descriptor(int socket, int fd) noexcept {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    char byte = 0;
    iovec data{&byte, 1};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
    return ::sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

/// The text that a process that waits for us has at `address`; empty where it cannot be read.
std::string text_of(pid_t pid, std::uint64_t address, std::size_t size) {
    const UniqueFd memory{::open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC)};
    std::string text(size, '\0');
    const auto got = ::pread(memory.get(), text.data(), size, static_cast<off_t>(address));
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
    return text;
}

}  // namespace

GrantedFile::GrantedFile(std::string path, UniqueFd file)
    : path_(std::move(path)), file_(std::move(file)) {
    auto sockets = make_socket_pair("watch what QEMU opens");
    ours_ = std::move(sockets.ours);
    theirs_ = std::move(sockets.theirs);
}

void GrantedFile::started() {
    theirs_.reset();
    auto message = receive_with_fds(ours_.get(), 1);
    ours_.reset();
    if (!message || message->fds.size() != 1)
        throw Failure("watch what QEMU opens: it has not sent its filter");
    listener_ = std::move(message->fds.front());
}

asio::awaitable<void> GrantedFile::serve(asio::any_io_executor executor) {
    asio::posix::stream_descriptor listener{executor};
    listener.assign(listener_.get());
    (void)listener_.release();
    for (;;) {
        const auto [error] = co_await listener.async_wait(asio::posix::stream_descriptor::wait_read,
                                                          asio::as_tuple(asio::use_awaitable));
        if (error || !answer(listener.native_handle())) co_return;
    }
}

bool GrantedFile::answer(int listener) {
    pollfd ready{listener, POLLIN, 0};
    if (::poll(&ready, 1, 0) == 1 && (ready.revents & POLLIN) == 0) return false;
    seccomp_notif call{};
    if (::ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) return true;  // killed meanwhile
    // With the end of the text.
    const auto wanted = path_ + '\0';
    const auto path = text_of(static_cast<pid_t>(call.pid), call.data.args[1], wanted.size());
    if (path == wanted) {
        seccomp_notif_addfd grant{};
        grant.id = call.id;
        grant.flags = SECCOMP_ADDFD_FLAG_SEND;
        grant.srcfd = static_cast<std::uint32_t>(file_.get());
        grant.newfd_flags = O_CLOEXEC;
        if (::ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &grant) >= 0) return true;
    }
    seccomp_notif_resp answer{};
    answer.id = call.id;
    answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ::ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    return true;
}

const char* filter_opens(int socket) noexcept {
    sock_fprog program{static_cast<unsigned short>(filter.size()),
                       const_cast<sock_filter*>(filter.data())};
    const auto listener = static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                                                     SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
    if (listener < 0) return "watch what it opens";
    if (!send_descriptor(socket, listener)) return "send the filter of what it opens";
    ::close(listener);
    ::close(socket);
    return nullptr;
}

}  // namespace qvm
