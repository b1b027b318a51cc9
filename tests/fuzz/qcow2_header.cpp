// A guest, or whoever made the image, chooses every byte of it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "images/contents.h"
#include "images/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace qvm::images;
    static const int fd = memfd_create("image", MFD_CLOEXEC);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, data, size, 0) != static_cast<ssize_t>(size)) abort();
    for (const auto* format : {"qcow2", "raw"}) {
        try {
            check_header(fd);
            check_contents(fd, {.format = format, .virtual_size = 512}, false);
        } catch (const Error&) {
        }
    }
    return 0;
}
