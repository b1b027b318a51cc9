#pragma once

#include <string_view>

// The scripts of the demo guest: images/demo/*.sh, embedded by CMake.
namespace qvm::images::demo_files {

extern const std::string_view init;
extern const std::string_view hotplug;
extern const std::string_view udhcpc;
extern const std::string_view shutdown;

}  // namespace qvm::images::demo_files
