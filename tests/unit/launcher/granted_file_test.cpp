#include "launcher/granted_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch.hpp>
#include <fstream>

#include "launcher/memory_file.h"
#include "launcher/process.h"
#include "temporary.h"

using namespace qvm;
namespace asio = boost::asio;

namespace {

/// What a shell script prints that may open `file` as "/granted".
std::string output_of(const std::string& script, const std::filesystem::path& file) {
    GrantedFile granted{"/granted", UniqueFd{::open(file.c_str(), O_RDONLY | O_CLOEXEC)}};
    const MemoryFile out;
    SpawnSpec spec;
    spec.argv = {"sh", "-c", script, "sh", file.string()};
    spec.stdout_fd = out.fd();
    spec.confinement.emplace();
    spec.granted_file = granted.child_end();
    asio::io_context context{1};
    auto child = Child::spawn(spec);
    granted.started();
    asio::co_spawn(context, granted.serve(context.get_executor()), asio::detached);
    asio::co_spawn(
        context, [&]() -> asio::awaitable<void> { co_await child.wait(); }, asio::detached);
    context.run();
    return out.text();
}

}  // namespace

TEST_CASE("a granted file can be read, and not be written, whatever it was opened for") {
    const Temporary directory;
    const auto file = directory.path / "file";
    std::ofstream{file} << "hello\n";
    // "<>" is open(O_RDWR | O_CREAT) to a shell; python's os.open() adds O_CLOEXEC.
    const std::string open = R"(python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def open_to_write(path):
    return libc.open(path.encode(), os.O_RDWR)
fd = open_to_write("/granted")
print(os.read(fd, 5).decode())
try:
    os.write(fd, b"x")
except OSError as error:
    print(error.strerror)
print(open_to_write("/granted/other"), ctypes.get_errno())
fd = open_to_write(sys.argv[1])
print(os.write(fd, b"H"))
' "$1")";
    CHECK(output_of(open, file) == "hello\nBad file descriptor\n-1 2\n1\n");
    std::string text;
    std::getline(std::ifstream{file}, text);
    CHECK(text == "Hello");
}
