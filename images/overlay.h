#pragma once

#include <cstdint>

namespace qvm::images {

/// Writes an empty qcow2 (version 3) image of `virtual_size` bytes into the empty file `fd`, which
/// is borrowed and open for writing; its offset stays. The image names no backing file: QEMU gets
/// that as a node of its own (-blockdev driver=qcow2,...,backing=NODE), so nothing on disk decides
/// what is opened. 192 KiB and more in length, 12 KiB on disk. Source: QEMU
/// docs/interop/qcow2.txt. Throws Error unless the size is a multiple of 512 between 512 bytes and
/// 2 PiB and the file is empty; std::system_error if it cannot be written.
void write_overlay(int fd, std::uint64_t virtual_size);

}  // namespace qvm::images
