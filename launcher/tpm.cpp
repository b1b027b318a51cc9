#include "launcher/tpm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <system_error>

#include "launcher/failure.h"
#include "launcher/memory_file.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace asio = boost::asio;
namespace fs = std::filesystem;

std::vector<std::string> swtpm_command(int connection, int state) {
    return {"swtpm",
            "socket",
            "--tpm2",
            "--ctrl",
            fmt::format("type=unixio,clientfd={}", connection),
            "--tpmstate",
            fmt::format("backend-uri=file:///proc/self/fd/{}", state)};
}

std::vector<RootEntry> root_of_swtpm() {
    const auto program = fs::weakly_canonical(find_program("swtpm").value_or("swtpm"));
    auto entries = root_for(program, {}, {"/dev/null", "/dev/random", "/dev/urandom"});
    entries.push_back({RootEntry::Kind::bind, "proc/self/fd", "/proc/self/fd"});
    return with_directories(entries);
}

UniqueFd make_tpm_state() {
    return MemoryFile{}.release();
}

void make_named_tpm_state(const fs::path& path) {
    // swtpm is another user, and opens it anew; the directory keeps everybody else away.
    const UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    if (!fd || ::fchmod(fd.get(), 0666) != 0)
        throw Failure(
            fmt::format("create '{}': {}", path.string(), std::generic_category().message(errno)));
}

UniqueFd Tpm::start(int state, std::optional<Confinement> confinement) {
    constexpr int connection_number = 3, state_number = 4;
    auto connection = make_socket_pair("start the TPM");
    SpawnSpec spec;
    spec.argv = swtpm_command(connection_number, state_number);
    spec.inherit = {{connection.theirs.get(), connection_number}, {state, state_number}};
    spec.confinement = std::move(confinement);
    process_.start(std::move(spec));
    asio::co_spawn(executor_, process_.words.collect(debug_), asio::detached);
    asio::co_spawn(executor_, watch(), asio::detached);
    return std::move(connection.ours);
}

asio::awaitable<void> Tpm::watch() {
    const auto status = co_await process_.child->wait();
    // QEMU has told it to, and is on its way out itself.
    if (status.signal == 0 && status.code == 0) co_return;
    co_await asio::post(executor_, asio::use_awaitable);  // the last of its stderr
    // Its words before a signal are about something else.
    const auto how = status.describe();
    end_ = "--tpm: swtpm ended: " + (status.signal != 0 ? how : process_.words.text_or(how));
    died_(end_);
}

}  // namespace qvm
