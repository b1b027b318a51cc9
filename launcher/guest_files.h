#pragma once

#include <string_view>

// What runs in guests: launcher/guest/*, embedded by CMake without the comments.
namespace qvm::guest_files {

extern const std::string_view awaken_pl;
extern const std::string_view awaken_py;
extern const std::string_view awaken_sh;
extern const std::string_view command_sh;
extern const std::string_view hook_sh;
extern const std::string_view open_ports_sh;
extern const std::string_view request_sh;
extern const std::string_view run_sh;
extern const std::string_view session_sh;
extern const std::string_view wait_sh;

}  // namespace qvm::guest_files
