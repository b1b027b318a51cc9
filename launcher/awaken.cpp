#include "launcher/awaken.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>

#include "launcher/directories.h"
#include "launcher/failure.h"

namespace qvm {

namespace json = boost::json;

namespace {

/// Of a kernel without a driver for vmgenid the generator goes on as it was saved, for a minute or
/// so (drivers/char/random.c: CRNG_RESEED_INTERVAL), unless it is told to begin anew:
/// RNDADDENTROPY, RNDRESEEDCRNG. A shell has no word for that.
constexpr const char* reseed = R"(if [ -e /sys/bus/acpi/drivers/vmgenid ]; then :
elif command -v perl; then QVM_RANDOM={0} perl -e '
open F, ">", "/dev/urandom"; ioctl F, 0x40085203, pack("iiA*", 128, 32, $ENV{{QVM_RANDOM}});
ioctl F, 0x5207, 0'
elif command -v python3; then QVM_RANDOM={0} python3 -c '
import fcntl, os, struct; f = open("/dev/urandom", "w")
fcntl.ioctl(f, 0x40085203, struct.pack("ii32s", 128, 32, os.environ["QVM_RANDOM"].encode()))
fcntl.ioctl(f, 0x5207, 0)'
else echo {0} >/dev/urandom; fi
)";

/// Busybox's date knows whole seconds only.
std::string clock_script(std::chrono::system_clock::time_point time) {
    const auto now =
        std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
    return fmt::format("date -u -s @{}.{:03} || date -u -s @{}", now / 1000, now % 1000,
                       now / 1000);
}

}  // namespace

std::string random_uuid() {
    auto text = read_file("/proc/sys/kernel/random/uuid");
    if (!text || text->empty()) throw Failure("read '/proc/sys/kernel/random/uuid': nothing there");
    text->pop_back();
    return *text;
}

std::string awaken_script(const Awakening& awakening) {
    return fmt::format(R"({{
echo {} >/proc/sys/kernel/hostname
{}
{}echo {} >/run/qvm-boot-id &&
mount --bind /run/qvm-boot-id /proc/sys/kernel/random/boot_id &
}} >/dev/null 2>&1
)",
                       awakening.name, clock_script(awakening.now),
                       fmt::format(fmt::runtime(reseed), awakening.random), awakening.boot_id);
}

json::object clock_arguments(std::chrono::system_clock::time_point now) {
    json::array words{"-c", clock_script(now) + " >/dev/null 2>&1"};
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}, {"capture-output", true}};
}

json::object awaken_arguments(const Awakening& awakening, const std::string& hook) {
    json::array words{"-c",
                      awaken_script(awakening) + "[ -z \"$2\" ] || QVM_NAME=$1 exec sh -c \"$2\"",
                      "qvm", awakening.name, hook};
    return {{"path", "/bin/sh"}, {"arg", std::move(words)}, {"capture-output", true}};
}

}  // namespace qvm
