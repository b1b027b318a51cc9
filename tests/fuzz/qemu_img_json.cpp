// qemu-img describes an image that an attacker may have made.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "images/error.h"
#include "images/image_info.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace qvm::images;
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    probe_failure(text);
    try {
        check_image(parse_probe(text), false);
    } catch (const Error&) {
    }
    return 0;
}
