#pragma once

#include <string>
#include <vector>

#include "images/image_info.h"
#include "images/unpack.h"

/// qemu-img, which reads what anybody may have written: it opens no file but those that it is given
/// as descriptors, reaches no process and no network, is nobody where we are root, and has little
/// memory and time (Confinement).
namespace qvm {

/// What it says about the image `fd` (borrowed) of that format. Throws images::Error.
images::ImageInfo probe_image(int fd, const std::string& format);

/// Has it look at every cluster of an image, of a format that it can do that with: QEMU reads zeros
/// where a file was cut off. Throws images::Error where some are damaged.
void check_clusters(int fd, const std::string& format);

/// An image and, in this order, those beneath it: descriptors, borrowed, with their formats.
struct ImageChain {
    struct Node {
        int fd;
        std::string format;
    };
    std::vector<Node> nodes;
};

/// Writes what a guest would see of the chain as one qcow2 image into the empty file `to`, which is
/// open for reading and writing. Throws images::Error.
void convert_image(const ImageChain& from, int to, const images::Headway& headway);

}  // namespace qvm
