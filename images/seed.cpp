#include "images/seed.h"

#include <archive.h>
#include <archive_entry.h>
#include <sys/stat.h>

#include <memory>

#include "images/error.h"

namespace qvm::images {
namespace {

using ArchiveWriter = std::unique_ptr<archive, decltype(&archive_write_free)>;
using Entry = std::unique_ptr<archive_entry, decltype(&archive_entry_free)>;

void check(archive* writer, la_ssize_t status) {
    if (status >= ARCHIVE_WARN) return;
    const char* reason = archive_error_string(writer);
    throw Error(std::string{"write the seed: "} + (reason != nullptr ? reason : "unknown error"));
}

}  // namespace

void write_seed(int fd, const std::vector<SeedFile>& files) {
    const ArchiveWriter writer{archive_write_new(), archive_write_free};
    auto* out = writer.get();
    check(out, archive_write_set_format_iso9660(out));
    check(out, archive_write_set_format_option(out, "iso9660", "volume-id", "CIDATA"));
    check(out, archive_write_open_fd(out, fd));
    for (const auto& file : files) {
        const Entry entry{archive_entry_new(), archive_entry_free};
        archive_entry_set_pathname(entry.get(), file.name.c_str());
        archive_entry_set_mode(entry.get(), S_IFREG | 0400);
        archive_entry_set_size(entry.get(), static_cast<la_int64_t>(file.text.size()));
        check(out, archive_write_header(out, entry.get()));
        check(out, archive_write_data(out, file.text.data(), file.text.size()));
    }
    check(out, archive_write_close(out));
}

}  // namespace qvm::images
