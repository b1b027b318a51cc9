#include "images/seed.h"

#include <archive.h>
#include <archive_entry.h>

#include <catch2/catch.hpp>
#include <map>
#include <memory>

using namespace qvm::images;

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
    const std::string large(100'000, 'x');
    const auto image =
        make_seed({{"user-data", large}, {"meta-data", "{}\n"}, {"network-config", "a"}});
    constexpr std::size_t volume_id = 16 * 2048 + 40;  // ECMA-119, 8.4
    CHECK(image.substr(volume_id, 7) == "CIDATA ");
    CHECK(image.size() % 2048 == 0);
    CHECK(files_of(image) == std::map<std::string, std::string>{{"META-DATA", "{}\n"},
                                                                {"NETWORK-CONFIG", "a"},
                                                                {"USER-DATA", large}});
    CHECK(files_of(make_seed({{"user-data", ""}})).at("USER-DATA").empty());
}
