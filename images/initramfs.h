#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>

// File trees in memory, and the archives that they come from and go to: .deb packages in, an
// initramfs out. Nothing is unpacked to disk, so device nodes and root's ownership need no
// privilege.
namespace qvm::images {

/// A file, directory, symbolic link or device node. All belong to 0:0 and carry no time.
struct Node {
    mode_t mode = 0;         ///< type and permission bits, as in stat(2)
    std::string data{};      ///< a file's bytes, or where a symbolic link points
    unsigned dev_major = 0;  ///< of a device node
    unsigned dev_minor = 0;

    bool operator==(const Node&) const = default;

    static Node file(std::string bytes, mode_t permissions = 0644);
    static Node directory(mode_t permissions = 0755);
    static Node symlink(std::string target);
    static Node char_device(unsigned major, unsigned minor, mode_t permissions = 0600);
};

/// Nodes by path; paths are relative, without "./" in front or "/" behind.
using Tree = std::map<std::string, Node>;

/// Which entries of an archive are worth keeping.
using Keep = std::function<bool(std::string_view path)>;

/// lz4 is missing: the kernel reads only its old format, which libarchive does not write.
enum class Compression { none, gzip, zstd };

/// Reads an ar, cpio or tar archive, plain or compressed with gzip, xz or zstd. Throws Error if it
/// is none or if what is kept exceeds 1 GiB.
Tree read_archive(std::string_view bytes, const Keep& keep = {});

/// Reads the files of a Debian package (deb(5): an ar archive with a data.tar.* in it). Throws
/// Error if it is not one.
Tree read_deb(const std::filesystem::path& deb, const Keep& keep = {});

/// Writes `tree` as an initramfs: a cpio archive of the "newc" kind
/// (Documentation/driver-api/early-userspace/buffer-format.rst), compressed. Directories that are
/// missing above a node are added. The same tree gives the same bytes. Throws Error.
void write_initramfs(const Tree& tree, const std::filesystem::path& output, Compression how);

}  // namespace qvm::images
