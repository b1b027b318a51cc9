#include "launcher/awaken.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/guest_command.h"
#include "launcher/guest_files.h"
#include "launcher/qemu_command.h"

namespace qvm {

namespace json = boost::json;

std::string random_uuid() {
    auto text = read_file("/proc/sys/kernel/random/uuid");
    if (!text || text->empty()) throw Failure("read '/proc/sys/kernel/random/uuid': nothing there");
    text->pop_back();
    return *text;
}

std::string awaken_functions() {
    using namespace guest_files;
    return fmt::format("awaken_perl={}\nawaken_python={}\n{}", shell_word(std::string{awaken_pl}),
                       shell_word(std::string{awaken_py}), awaken_sh);
}

std::string awaken_call(const Awakening& awakening) {
    const auto now =
        std::chrono::duration_cast<std::chrono::nanoseconds>(awakening.now.time_since_epoch())
            .count();
    return fmt::format("awaken {} {} {:09} {} {}\n", awakening.name, now / std::nano::den,
                       now % std::nano::den, awakening.random, awakening.boot_id);
}

json::object awaken_arguments(const Awakening& awakening, const std::string& hook) {
    auto arguments = guest_script_arguments(
        awaken_functions() + awaken_call(awakening) +
        fmt::format("set -- {} {}\n{}", awakening.name, shell_word(hook), guest_files::hook_sh));
    arguments["capture-output"] = true;
    return arguments;
}

}  // namespace qvm
