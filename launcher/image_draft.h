#pragma once

#include <filesystem>
#include <string>

#include "launcher/image_store.h"

/// The one place where a file becomes an image of the store.
namespace qvm {

/// An image that is ready to be added.
struct NewImage {
    ImageDraft draft;
    ImageRecord record;  ///< digest, format and sizes; the rest is the caller's to say
};

/// Of a copy of the file, which shares its blocks where the file system can do that. It is no hard
/// link: the user may write to the file later. Throws Failure that names the path as the user did.
NewImage image_of_file(const ImageStore& store, const std::filesystem::path& path);

/// Of a file that was pulled and is all there, itself. `digest` is its SHA-256. What is no image is
/// removed. Throws Failure with the reason alone.
NewImage image_of_download(Download& download, std::string digest);

}  // namespace qvm
