#pragma once

#include <stdexcept>

namespace qvm::images {

/// What every function here throws (besides std::system_error for a failed system call). what() is
/// a reason for a person, to stand after "qvm: OBJECT: "; it does not repeat the object's path.
class Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace qvm::images
