#pragma once

#include <boost/json/object.hpp>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "launcher/values.h"
#include "netns/unique_fd.h"

/// UEFI: which of the firmware that is installed a guest gets. Distributions say what they have by
/// descriptors (docs/interop/firmware.json of QEMU).
namespace qvm {

/// A firmware for flash memory. Formats are QEMU's: "raw" or "qcow2".
struct Firmware {
    std::filesystem::path code;
    std::string code_format;
    std::filesystem::path variables;  ///< what they are at first: of each VM its own copy
    std::string variables_format;
    bool smm = false;  ///< only its own code, in system management mode, writes the variables

    bool operator==(const Firmware&) const = default;
};

/// As JSON and back. Reading throws Failure with the member that is wrong. Pure.
boost::json::object to_json(const Firmware& firmware);
Firmware firmware_from(const boost::json::object& object);

/// What a descriptor says.
struct FirmwareDescriptor {
    struct Target {
        std::string architecture;           ///< "x86_64"
        std::vector<std::string> machines;  ///< types with their versions, as glob(7) patterns
    };
    Firmware firmware;
    std::vector<Target> targets;
    std::vector<std::string> features;  ///< "secure-boot"
};

/// Reads one; nothing where that is no UEFI, or not in two flash memories, of which one has the
/// variables. Throws Failure with what is wrong. Pure.
std::optional<FirmwareDescriptor> parse_descriptor(const std::string& text);

/// The first that fits: with `secure_boot` one that enforces it and has Microsoft's keys, else one
/// that does not. Pure.
std::optional<Firmware> choose_firmware(const std::vector<FirmwareDescriptor>& descriptors,
                                        Architecture architecture, bool secure_boot);

/// Where descriptors are, the most important directory last: the distribution's, the host's, the
/// user's.
std::vector<std::filesystem::path> descriptor_directories();

/// The files in them, in the order in which they count: by their names. One hides those of its name
/// in less important directories, and is none itself where it is empty.
std::vector<std::filesystem::path> descriptor_files(
    const std::vector<std::filesystem::path>& directories);

/// What this host has; nothing where none fits. Throws Failure where none does and a descriptor
/// cannot be read.
std::optional<Firmware> find_firmware(
    Architecture architecture, bool secure_boot,
    const std::vector<std::filesystem::path>& directories = descriptor_directories());

/// Opens its code for reading. Throws Failure.
UniqueFd open_code(const Firmware& firmware);

/// Variables as they are at first, in memory: gone with their last descriptor. Throws Failure.
UniqueFd make_variables(const Firmware& firmware);

/// The same as the new file `path`, on disk when it returns. Throws Failure.
void make_named_variables(const Firmware& firmware, const std::filesystem::path& path);

}  // namespace qvm
