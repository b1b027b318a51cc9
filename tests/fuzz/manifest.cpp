// A snapshot's manifest, which may come from elsewhere (`qvm snapshot import`): any JSON is a
// manifest or a Failure.
#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "launcher/failure.h"
#include "launcher/json_text.h"
#include "launcher/snapshot.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const auto manifest = qvm::parse_manifest(
            qvm::parse_object(std::string{reinterpret_cast<const char*>(data), size}));
        // What was read is written as something that reads the same.
        const auto written = to_json(manifest);
        if (to_json(qvm::parse_manifest(written)) != written) __builtin_trap();
        (void)qvm::clone_options(manifest, {});
    } catch (const qvm::Failure&) {
        // It says what is wrong.
    }
    return 0;
}
