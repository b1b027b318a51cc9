#pragma once

#include <string>
#include <string_view>

#include "images/image_info.h"

// What qemu-img does not look at: it takes any file for a raw disk, and a truncated qcow2 for a
// whole one.
namespace qvm::images {

/// To be called before anything of QEMU's looks at the file. Returns the format that its first
/// bytes claim, as QEMU calls it, "raw" where they claim none; QEMU is then told that it is this
/// one and does not guess. Throws Error if it is not a regular file; if it is of another format
/// than raw, qcow2, VMDK, VDI, VHDX and VHD; if its header has sizes or places of tables that
/// cannot be, or needs what QEMU does not know; and if it names other files, which QEMU would open:
/// an external data file (CVE-2024-4467), a parent, extents, or a backing file, unless
/// `trust_backing` lets that through (check_backing_name()). `fd` is borrowed, open for reading;
/// its offset stays. Throws std::system_error if it cannot be read.
std::string check_header(int fd, bool trust_backing);

/// Whether a file whose first 512 bytes these are would be a disk by itself: it is of no other
/// format than qcow2 and raw, and has no backing file. Pure.
bool is_whole_disk(std::string_view first);

/// Throws Error if the file holds an ISO 9660 image that is no disk as well (most that install a
/// system are). `fd` as above.
void check_no_cd(int fd);

/// Throws Error if what the file holds is not what `info` says: a raw disk has whole sectors of
/// 512 bytes, is no archive and no qcow2, and, unless the guest gets its kernel from outside
/// (`has_kernel`), has a boot signature and is no CD; a qcow2 image reaches as far as its refcounts
/// say (QEMU docs/interop/qcow2.txt). Reads are bounded (tens of MiB at worst, a few KiB as a
/// rule). `fd` is borrowed, open for reading; its offset stays. Throws std::system_error if it
/// cannot be read.
void check_contents(int fd, const ImageInfo& info, bool has_kernel);

}  // namespace qvm::images
