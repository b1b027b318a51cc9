#include "launcher/firmware.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <system_error>
#include <tuple>

#include "images/sparse.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/json_reader.h"
#include "launcher/json_text.h"
#include "launcher/machine.h"
#include "launcher/memory_file.h"

namespace qvm {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

bool contains(const std::vector<std::string>& words, std::string_view word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

std::string format_of(const JsonReader& reader, const char* key) {
    auto format = reader.text(key).value_or("");
    if (format != "raw" && format != "qcow2")
        throw Failure(fmt::format("'{}' is neither raw nor qcow2", key));
    return format;
}

/// A file and its format.
std::pair<fs::path, std::string> image_of(const JsonReader& mapping, const char* key) {
    const JsonReader image{mapping.object(key)};
    const fs::path path = image.text("filename").value_or("");
    if (!path.is_absolute()) throw Failure("'filename' is no absolute path");
    return {path, format_of(image, "format")};
}

/// The type of our machine has no version, which the patterns are for.
bool is_for(const FirmwareDescriptor::Target& target, Architecture architecture) {
    if (target.architecture != to_string(architecture)) return false;
    const char* type = machine_of(architecture).versions;
    return std::any_of(target.machines.begin(), target.machines.end(), [&](const auto& pattern) {
        return ::fnmatch(pattern.c_str(), type, 0) == 0;
    });
}

UniqueFd open_for_reading(const fs::path& path) {
    UniqueFd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (!fd) throw Failure(fmt::format("open firmware '{}': {}", path.string(), reason()));
    return fd;
}

bool exists(const Firmware& firmware) {
    std::error_code none;
    return fs::exists(firmware.code, none) && fs::exists(firmware.variables, none);
}

void copy_variables(const Firmware& firmware, int to) {
    const auto from = open_for_reading(firmware.variables);
    try {
        images::copy_sparse(from.get(), to);
    } catch (const std::system_error& error) {
        throw Failure(fmt::format("copy firmware '{}': {}", firmware.variables.string(),
                                  error.code().message()));
    }
}

}  // namespace

json::object to_json(const Firmware& firmware) {
    return {{"code", firmware.code.string()},
            {"code_format", firmware.code_format},
            {"variables", firmware.variables.string()},
            {"variables_format", firmware.variables_format},
            {"smm", firmware.smm}};
}

Firmware firmware_from(const json::object& object) {
    const JsonReader reader{object};
    return {.code = reader.text("code").value_or(""),
            .code_format = format_of(reader, "code_format"),
            .variables = reader.text("variables").value_or(""),
            .variables_format = format_of(reader, "variables_format"),
            .smm = reader.flag("smm")};
}

std::optional<FirmwareDescriptor> parse_descriptor(const std::string& text) {
    const auto object = parse_object(text);
    const JsonReader reader{object};
    const JsonReader mapping{reader.object("mapping")};
    const auto mode = mapping.text("mode").value_or("split");
    if (!contains(reader.texts("interface-types"), "uefi") || mapping.text("device") != "flash" ||
        mode != "split")
        return std::nullopt;
    FirmwareDescriptor descriptor;
    auto& firmware = descriptor.firmware;
    std::tie(firmware.code, firmware.code_format) = image_of(mapping, "executable");
    std::tie(firmware.variables, firmware.variables_format) = image_of(mapping, "nvram-template");
    for (const auto* item : reader.objects("targets")) {
        const JsonReader target{*item};
        descriptor.targets.push_back(
            {target.text("architecture").value_or(""), target.texts("machines")});
    }
    descriptor.features = reader.texts("features");
    firmware.smm = contains(descriptor.features, "requires-smm");
    return descriptor;
}

std::optional<Firmware> choose_firmware(const std::vector<FirmwareDescriptor>& descriptors,
                                        Architecture architecture, bool secure_boot) {
    for (const auto& [firmware, targets, features] : descriptors) {
        const bool enforces =
            contains(features, "secure-boot") && contains(features, "enrolled-keys");
        // What only the secure ones need costs time.
        if (secure_boot ? !enforces : enforces || firmware.smm) continue;
        if (std::any_of(targets.begin(), targets.end(),
                        [&](const auto& target) { return is_for(target, architecture); }))
            return firmware;
    }
    return std::nullopt;
}

std::vector<fs::path> descriptor_directories() {
    std::vector<fs::path> directories{"/usr/share", "/etc"};
    const char* own = std::getenv("XDG_CONFIG_HOME");
    const char* home = std::getenv("HOME");
    if (own != nullptr && fs::path{own}.is_absolute())
        directories.emplace_back(own);
    else if (home != nullptr)
        directories.push_back(fs::path{home} / ".config");
    for (auto& directory : directories) directory /= "qemu/firmware";
    return directories;
}

std::vector<fs::path> descriptor_files(const std::vector<fs::path>& directories) {
    std::map<std::string, fs::path> by_name;
    std::error_code none;
    for (const auto& directory : directories)
        for (const auto& entry : fs::directory_iterator{directory, none})
            if (entry.path().extension() == ".json")
                by_name[entry.path().filename().string()] = entry.path();
    std::vector<fs::path> files;
    for (const auto& [name, path] : by_name)
        if (fs::file_size(path, none) != 0) files.push_back(path);
    return files;
}

std::optional<Firmware> find_firmware(Architecture architecture, bool secure_boot,
                                      const std::vector<fs::path>& directories) {
    std::vector<FirmwareDescriptor> descriptors;
    std::optional<Failure> broken;
    for (const auto& file : descriptor_files(directories)) try {
            naming(fmt::format("read '{}'", file.string()), [&] {
                const auto text = read_file(file);
                if (!text) throw Failure(reason());
                auto descriptor = parse_descriptor(*text);
                // Debian 12 has one of a file that it has not.
                if (descriptor && exists(descriptor->firmware))
                    descriptors.push_back(std::move(*descriptor));
            });
        } catch (const Failure& failure) {
            broken = failure;
        }
    auto chosen = choose_firmware(descriptors, architecture, secure_boot);
    if (!chosen && broken) throw Failure{*broken};  // which may be the one
    return chosen;
}

UniqueFd open_code(const Firmware& firmware) {
    return open_for_reading(firmware.code);
}

UniqueFd make_variables(const Firmware& firmware) {
    MemoryFile file;
    copy_variables(firmware, file.fd());
    return file.release();
}

void make_named_variables(const Firmware& firmware, const fs::path& path) {
    const auto step = fmt::format("create '{}': ", path.string());
    const UniqueFd fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    if (!fd) throw Failure(step + reason());
    copy_variables(firmware, fd.get());
    if (::fsync(fd.get()) != 0) throw Failure(step + reason());
}

}  // namespace qvm
