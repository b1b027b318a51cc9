#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace qvm::images {

/// What `qemu-img info --output=json` says about an image (ImageInfo in QEMU's
/// qapi/block-core.json). Names that the image holds are an attacker's: never open them unasked.
struct ImageInfo {
    std::string format{};            ///< "qcow2", "raw", ...
    std::uint64_t virtual_size = 0;  ///< bytes that the guest sees
    std::uint64_t actual_size = 0;   ///< bytes on the host's disk
    std::string backing_file{};      ///< as it stands in the image; empty if there is none
    std::string backing_format{};    ///< likewise
    std::string data_file{};         ///< external data file, likewise
    bool encrypted = false;
    bool dirty = false;    ///< not closed properly; QEMU repairs it when it opens it for writing
    bool corrupt = false;  ///< QEMU found damage earlier, and opens it for reading only
};

/// The command whose standard output parse_probe() reads, or whose standard error probe_failure().
/// It never passes -U, so an image that another process writes to is refused. The path has to be
/// absolute, or its beginning could be taken for an option or a protocol.
std::vector<std::string> probe_command(const std::filesystem::path& absolute_image);

/// Reads that command's JSON. Throws Error if it is malformed, or lacks or has absurd values
/// (sizes are below 2^63).
ImageInfo parse_probe(std::string_view json);

/// The bare reason in qemu-img's standard error, one line without the tool's name and the path:
/// "No such file or directory", "is in use by another process".
std::string probe_failure(std::string_view stderr_text);

/// Throws Error, with the first reason against it, if the image is not one that a guest may be
/// given: a format other than qcow2 and raw, encryption, no size, or files of the host that it
/// names. Those a guest can name itself, by writing a qcow2 header into its raw disk; with
/// `trust_backing` a backing file is let through, but never a "json:" name, nor a data file.
void check_image(const ImageInfo& info, bool trust_backing);

}  // namespace qvm::images
