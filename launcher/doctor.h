#pragma once

#include <string>
#include <vector>

#include "launcher/doctor_facts.h"

/// From what this host is like to what is wrong with it: values only, nothing is touched.
namespace qvm {

/// One thing that qvm needs of the host. Several may have one name: a chain of the firewall each.
struct Finding {
    enum class Status { ok, warning, missing };  ///< warning: qvm runs, but slower or not all of it
    std::string name;
    Status status = Status::ok;
    std::string found;
    std::string remedy = {};  ///< one line, a command where there is one; empty when all is well

    bool operator==(const Finding&) const = default;
};

/// In the order in which they are worth a remedy.
std::vector<Finding> judge(const DoctorFacts& facts);

/// 1 where something is missing, else 0.
int exit_status(const std::vector<Finding>& findings);

/// A table for people; remedies stand below what they are for.
std::string to_text(const std::vector<Finding>& findings, bool colour);

/// [{"name": "kvm", "status": "warning", "found": "...", "remedy": "..."}, ...]
std::string to_json(const std::vector<Finding>& findings);

}  // namespace qvm
