#include "images/sparse.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "tests/unit/images/support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

constexpr off_t mib = 1024 * 1024;

struct stat status_of(const File& file) {
    struct stat status {};
    REQUIRE(::fstat(file.fd(), &status) == 0);
    return status;
}

/// 64 MiB with something at its beginning, across a block, and at its end.
void fill(const File& file) {
    REQUIRE(::ftruncate(file.fd(), 64 * mib + 5) == 0);
    const std::string text(9000, 'x');
    for (const off_t offset : {off_t{0}, 3 * mib - 100, 64 * mib + 5 - 9000})
        REQUIRE(::pwrite(file.fd(), text.data(), text.size(), offset) == 9000);
    const std::string zeros(2 * mib, '\0');
    REQUIRE(::pwrite(file.fd(), zeros.data(), zeros.size(), 10 * mib) == 2 * mib);
}

}  // namespace

TEST_CASE("a copy has the same contents, and holes for what is zero") {
    const TemporaryDirectory directory;
    const File from{directory / "from", O_RDWR | O_CREAT};
    fill(from);
    const File to{directory / "to", O_RDWR | O_CREAT};
    std::stop_source stopped;
    stopped.request_stop();
    CHECK_THROWS_AS(copy_sparse(from.fd(), to.fd(), stopped.get_token()), std::system_error);
    copy_sparse(from.fd(), to.fd());
    CHECK(read_file(directory / "to") == read_file(directory / "from"));
    CHECK(status_of(to).st_blocks * 512 < mib);

    const File memory{directory / "memory", O_RDWR | O_CREAT};
    REQUIRE(::ftruncate(memory.fd(), 64 * mib + 5) == 0);
    fill_sparse(from.fd(), memory.fd());
    CHECK(read_file(directory / "memory") == read_file(directory / "from"));
}

TEST_CASE("a copy's checksum is of all of it, holes as zeros") {
    const TemporaryDirectory directory;
    const File from{directory / "from", O_RDWR | O_CREAT};
    fill(from);
    const auto text = read_file(directory / "from");
    const File to{directory / "to", O_RDWR | O_CREAT};
    Hash hash{HashKind::sha256};
    std::uint64_t done = 0;
    const BytesDone count = [&](std::uint64_t bytes) {
        CHECK(bytes > done);
        done = bytes;
    };
    copy_sparse(from.fd(), to.fd(), hash, count);
    CHECK(done == text.size());
    done = 0;
    CHECK(hash.finish().hex == checksum(text));
    CHECK(read_file(directory / "to") == text);
    CHECK(status_of(to).st_blocks * 512 < mib);
    hash_file(to.fd(), hash, count);
    done = 0;
    CHECK(hash.finish().hex == checksum(text));
    const File empty{directory / "empty", O_RDWR | O_CREAT};
    hash_file(empty.fd(), hash, count);
    CHECK(hash.finish().hex == checksum(""));
    // Nothing but a hole, and no whole block.
    REQUIRE(::ftruncate(empty.fd(), 100) == 0);
    hash_file(empty.fd(), hash, count);
    CHECK(hash.finish().hex == checksum(std::string(100, '\0')));
}

TEST_CASE("a checksum is of what is in a file, wherever its holes are") {
    const TemporaryDirectory directory;
    const File one{directory / "one", O_RDWR | O_CREAT};
    fill(one);
    const File other{directory / "other", O_RDWR | O_CREAT};
    const auto text = read_file(directory / "one");
    REQUIRE(::write(other.fd(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    const auto checksum = sparse_checksum(one.fd());
    CHECK(checksum.size() == 64);
    CHECK(checksum == sparse_checksum(other.fd()));
    REQUIRE(::pwrite(other.fd(), "y", 1, 20 * mib) == 1);
    CHECK(checksum != sparse_checksum(other.fd()));
    // The same in another place.
    REQUIRE(::pwrite(one.fd(), "y", 1, 21 * mib) == 1);
    CHECK(sparse_checksum(one.fd()) != sparse_checksum(other.fd()));
}

TEST_CASE("the checksum of nothing is SHA-256's") {
    const TemporaryDirectory directory;
    const File empty{directory / "empty", O_RDWR | O_CREAT};
    CHECK(sparse_checksum(empty.fd()) == checksum(""));
}
