#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "images/image_info.h"
#include "images/unpack.h"

/// qemu-img, which reads what anybody may have written: it opens no file but those that it is given
/// as descriptors, reaches no process and no network, is nobody where we are root, and has little
/// memory and time (Confinement). What is below throws images::Error where an image is at fault,
/// Failure and std::system_error where the host cannot do it; both are the reason alone.
namespace qvm {

/// Whether on a file system of that type (statfs(2)) a server or another program decides who opens
/// a file, and no capability does. Pure.
bool is_remote(std::uint32_t file_system);

/// Its path. Throws Failure, with the package that has it, where it is not installed.
std::string find_qemu_img();

/// What it says about the image `fd` (borrowed) of that format.
images::ImageInfo probe_image(int fd, const std::string& format);

/// Has it look at every cluster of an image, of a format that it can do that with: QEMU reads zeros
/// where a file was cut off. Some that are damaged are an error.
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
/// open for reading and writing.
void convert_image(const ImageChain& from, int to, const images::Headway& headway);

}  // namespace qvm
