#pragma once

#include <filesystem>
#include <string>

#include "launcher/image_store.h"
#include "launcher/progress.h"

/// The one place where a file becomes an image of the store.
namespace qvm {

/// An image that is ready to be added.
struct NewImage {
    ImageDraft draft;
    ImageRecord record;  ///< digest, format and sizes; the rest is the caller's to say
};

/// Of a copy of the file, which shares its blocks where the file system can do that. It is no hard
/// link: the user may write to the file later. What is compressed is unpacked, what is of another
/// format is converted, and what is beneath a trusted one becomes part of it. Throws Failure that
/// names the path as the user did.
NewImage image_of_file(const ImageStore& store, const std::filesystem::path& path,
                       bool trust_backing);

/// What can be known of one that is in the store already and has lost its name. Throws Failure with
/// the reason alone.
ImageRecord record_of_blob(const ImageStore& store, const std::string& digest);

/// Of a file that was pulled and is all there, itself, or of what it has to be made into. `digest`
/// is its SHA-256. What is no image is removed (images::Error); where the host could not do it, it
/// stays. Throws Failure, too, with the reason alone.
NewImage image_of_download(const ImageStore& store, Download& download, std::string digest,
                           ProgressMeter& meter);

}  // namespace qvm
