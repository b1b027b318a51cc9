#pragma once

#include <cstdint>
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
/// It never passes -U, so an image that another process writes to is refused. `format` is what
/// check_header() found; the path has to be absolute, or its beginning could be taken for an option
/// or a protocol. Pure.
std::vector<std::string> probe_command(const std::string& format, const std::string& path);

/// Reads that command's JSON. Throws Error if it is malformed, or lacks or has absurd values
/// (sizes are below 2^63).
ImageInfo parse_probe(std::string_view json);

/// The bare reason in qemu-img's standard error, one line without the tool's name and the path:
/// "No such file or directory", "is in use by another process".
std::string probe_failure(std::string_view stderr_text);

/// Throws Error if a guest cannot be given a disk of that format: one other than qcow2 and raw.
/// Pure.
void check_format(const std::string& format);

/// Throws Error if an image may not name this file as what is beneath it: without `trust_backing`
/// none at all, since a guest can name files of the host by writing a qcow2 header into its raw
/// disk; and never a "json:" description, or what is no path to QEMU ("nbd://..."). Pure.
void check_backing_name(std::string_view name, bool trust_backing);

/// Throws Error, with the first reason against it, if the image is not one that a guest may be
/// given: encryption, no size, a data file, or a backing file that it may not name. Pure.
void check_image(const ImageInfo& info, bool trust_backing);

}  // namespace qvm::images
