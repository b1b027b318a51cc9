#pragma once

#include <cstdint>
#include <filesystem>

#include "launcher/vm_plan.h"
#include "netns/unique_fd.h"

namespace qvm {

/// A file as it was when a VM began to use it.
struct KnownFile {
    std::filesystem::path path;
    std::string format{};        ///< of a disk; else empty
    std::uint64_t size = 0;      ///< bytes
    std::uint64_t modified = 0;  ///< when its contents last changed, ns since the epoch
    std::string checksum{};      ///< images::sparse_checksum(), where it was asked for
};

/// What `fd` is, opened as `path`. Throws Failure.
KnownFile known_file(const std::filesystem::path& path, std::string format, int fd);

/// Whether a file is what it was: it has the same size and, where its checksum is known by now, the
/// same contents; else these were not changed since. Pure.
bool is_unchanged(const KnownFile& was, const KnownFile& now);

/// IMAGE, or a --drive, opened and found to be a disk.
struct ImageFile {
    UniqueFd fd;  ///< read-only, or read-write where it is written to
    ImageFacts facts;
    std::vector<UniqueFd> backing{};  ///< read-only, in the order of facts.backing
    std::vector<KnownFile> known{};   ///< it, and those beneath
};

/// Opens a VM's image and probes it with qemu-img, and, where they are trusted, the files that it
/// names as beneath it. Throws Failure that names it as the user did.
ImageFile open_image(const VmOptions& vm, bool persist);

/// Opens a file that no other process writes to, or, where it `writes`, has open at all. What it
/// holds is not looked at. Throws Failure with the reason alone.
ImageFile open_unused(const std::filesystem::path& path, bool writes);

/// A file that is open already, probed as open_image() does; `has_kernel` when nothing boots from
/// it. Throws Failure with the reason alone, images::Error and std::system_error.
ImageFile as_image(ImageFile file, const std::filesystem::path& path, bool has_kernel,
                   bool trust_backing);

/// Opens a --drive likewise, for reading and writing unless it is read-only. A file of any
/// contents may be given as raw.
ImageFile open_drive(const DriveOption& drive);

/// Bytes of an overlay over an image of `image_size` bytes, of which a user wants so many MiB.
/// Throws Failure where that would lose some. Pure.
std::uint64_t disk_size(std::optional<std::uint64_t> wanted_mib, std::uint64_t image_size);

/// An empty file without a name in `directory`, whose space is free again when its last descriptor
/// closes; -1 with errno.
UniqueFd open_unnamed(const std::filesystem::path& directory);

/// An empty overlay of `virtual_size` bytes, without a name, in `directory`: its space is free
/// again when its last descriptor closes. Throws Failure.
UniqueFd make_overlay(const std::filesystem::path& directory, std::uint64_t virtual_size);

/// An empty overlay of `virtual_size` bytes as the new file `path`, on disk when it returns. Throws
/// Failure.
void make_named_overlay(const std::filesystem::path& path, std::uint64_t virtual_size);

/// Opens what a VM that was created writes to, for QEMU; waits 2 s at most where another process
/// has it open. `what` names it in the message ("overlay"). Throws Failure.
UniqueFd open_own(const std::string& what, const std::filesystem::path& path);

/// Throws Failure if `path` is no file that can be read. `option` names it in the message.
void check_readable_file(const std::string& option, const std::filesystem::path& path);

}  // namespace qvm
