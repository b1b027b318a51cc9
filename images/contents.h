#pragma once

#include "images/image_info.h"

// What qemu-img does not look at: it takes any file for a raw disk, and a truncated qcow2 for a
// whole one.
namespace qvm::images {

/// To be called before anything of QEMU's looks at the file: throws Error if it is not a regular
/// file, or has a qcow2 header that names an external data file, which `qemu-img info` opens
/// (CVE-2024-4467). `fd` is borrowed, open for reading; its offset stays.
void check_header(int fd);

/// Throws Error if what the file holds is not what `info` says: a raw disk has whole sectors of
/// 512 bytes, is no archive and no qcow2, and, unless the guest gets its kernel from outside
/// (`has_kernel`), has a boot signature; a qcow2 image reaches as far as its refcounts say (QEMU
/// docs/interop/qcow2.txt). Reads are bounded (tens of MiB at worst, a few KiB as a rule). `fd` is
/// borrowed, open for reading; its offset stays. Throws std::system_error if it cannot be read.
void check_contents(int fd, const ImageInfo& info, bool has_kernel);

}  // namespace qvm::images
