#include "images/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <map>
#include <memory>

#include "support.h"

using namespace qvm::images;
using namespace qvm::images::test;

namespace {

std::map<std::string, std::string> files_of(const std::string& image) {
    const std::unique_ptr<archive, decltype(&archive_read_free)> reader{archive_read_new(),
                                                                        archive_read_free};
    archive_read_support_format_iso9660(reader.get());
    REQUIRE(archive_read_open_memory(reader.get(), image.data(), image.size()) == ARCHIVE_OK);
    std::map<std::string, std::string> files;
    archive_entry* entry = nullptr;
    while (archive_read_next_header(reader.get(), &entry) == ARCHIVE_OK) {
        if (archive_entry_filetype(entry) != AE_IFREG) continue;
        auto& text = files[archive_entry_pathname(entry)];
        text.resize(static_cast<std::size_t>(archive_entry_size(entry)));
        REQUIRE(archive_read_data(reader.get(), text.data(), text.size()) ==
                static_cast<la_ssize_t>(text.size()));
    }
    return files;
}

}  // namespace

TEST_CASE("a seed is a volume that cloud-init finds and reads") {
    const TemporaryDirectory directory;
    const auto path = directory / "seed";
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
    const std::string large(100'000, 'x');
    write_seed(fd, {{"meta-data", "{}\n"}, {"network-config", "a"}, {"user-data", large}});
    ::close(fd);

    const auto bytes = read_file(path);
    constexpr std::size_t volume_id = 16 * 2048 + 40;  // ECMA-119, 8.4
    CHECK(bytes.substr(volume_id, 7) == "CIDATA ");
    auto files = files_of(bytes);
    CHECK(files["meta-data"] == "{}\n");
    CHECK(files["network-config"] == "a");
    CHECK(files["user-data"] == large);
}
