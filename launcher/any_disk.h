#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

#include "launcher/image_file.h"

namespace qvm {

/// How open_any_disk() goes about it.
struct AnyDiskOptions {
    bool trust_backing = false;  ///< open the files that it names as beneath it
    /// Is told what takes its time ("unpacking"), and which part of that is done, from 0 to 1.
    std::function<void(std::string_view, double)> progress = {};
};

struct AnyDisk {
    ImageFile image;        ///< has_kernel: of a raw disk no boot signature is asked for
    bool is_draft = false;  ///< it is what `draft` holds now; else that is still empty
};

/// Opens any file that holds a disk: a qcow2 or raw image that needs no other file is opened as it
/// is. All else is first made into one in `draft`, an
/// empty file open for reading and writing (borrowed), in `directory`: what is compressed (gzip,
/// xz, zstd) is unpacked, a VMDK, VDI, VHDX or VHD becomes a qcow2 image, and so does a trusted
/// image with those beneath it. Whether all of it is there is checked. Throws images::Error where
/// what the file holds is at fault; Failure, with the reason alone, and std::system_error where the
/// host cannot do it.
AnyDisk open_any_disk(const std::filesystem::path& path, int draft,
                      const std::filesystem::path& directory, const AnyDiskOptions& options);

}  // namespace qvm
