#pragma once

#include <string>
#include <vector>

namespace qvm::images {

struct SeedFile {
    std::string name;  ///< "user-data"
    std::string text;
};

/// Writes a seed for cloud-init's NoCloud datasource into the empty file `fd`, which is borrowed
/// and open for writing: an ISO 9660 file system with Rock Ridge names and the volume label
/// "CIDATA", by which the guest finds it (cloud-init's documentation, "NoCloud"). Throws Error.
void write_seed(int fd, const std::vector<SeedFile>& files);

}  // namespace qvm::images
