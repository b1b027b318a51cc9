#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <string>

#include "netns/unique_fd.h"

namespace qvm {

/// A file that a child gets when it opens `path`, read-only, whatever it asked for.
///
/// QEMU opens the file that memory is mapped from (memory-backend-file) for reading and writing,
/// also where its mapping is private, and only by a path. A guest that has taken over its QEMU
/// could write there what other guests then have in their memory. So its open(O_RDWR) is answered
/// by us (seccomp_unotify(2)), with a descriptor that can only be read.
class GrantedFile {
  public:
    /// `file` is open for reading alone. Throws Failure.
    GrantedFile(std::string path, UniqueFd file);

    /// For SpawnSpec: by this socket (borrowed) the child sends the filter's descriptor.
    [[nodiscard]] int child_end() const noexcept { return theirs_.get(); }
    /// Once the child was spawned. Throws Failure.
    void started();
    /// Answers the child, until its end. Others of its calls are carried out as they are.
    boost::asio::awaitable<void> serve(boost::asio::any_io_executor executor);

  private:
    /// False where nobody is left to be answered.
    [[nodiscard]] bool answer(int listener);

    std::string path_;
    UniqueFd file_;
    UniqueFd ours_;
    UniqueFd theirs_;
    UniqueFd listener_;
};

/// In the child, between vfork and exec, with no_new_privs set: installs the filter and sends its
/// descriptor. Allocates nothing. Returns the call that failed, with errno; nullptr when all is
/// well.
const char* filter_opens(int socket) noexcept;

}  // namespace qvm
