#pragma once

#include <string>
#include <vector>

namespace qvm::images {

struct SeedFile {
    std::string name;  ///< "user-data"
    std::string text;
};

/// A volume for cloud-init's NoCloud datasource (its documentation, "NoCloud"): an ISO 9660 file
/// system (ECMA-119) with the label "CIDATA", by which the guest finds it, and these files in its
/// root. Names are in capitals, as the format has them, and are at most 30 characters; guests read
/// them in small letters. Pure.
std::string make_seed(const std::vector<SeedFile>& files);

}  // namespace qvm::images
