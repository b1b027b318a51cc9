#pragma once

#include <functional>
#include <string>

#include "launcher/directories.h"
#include "launcher/image_file.h"
#include "launcher/options.h"
#include "launcher/timings.h"
#include "launcher/vm_plan.h"
#include "netns/host_network.h"
#include "netns/route_socket.h"

namespace qvm {

/// What prepare() made ready: everything is checked, and nothing is created yet.
struct PreparedRun {
    RunOptions options;
    VmPlan plan;
    Directories directories;
    std::optional<ImageFile> image;
    netns::Claims claims;
    netns::RouteSocket host;
};

/// How a VM's life ended.
struct RunResult {
    int exit_status = 0;
    std::string message;  ///< one line for the user; empty when there is nothing to say
};

/// Takes a line for the user ("network is up").
using Report = std::function<void(const std::string&)>;

struct Reports {
    Report note;   ///< for everybody, but for --quiet
    Report debug;  ///< for --debug
};

/// Boots the VM, minds it until its end and takes everything down again. Blocks. Throws
/// std::exception for what fails before the guest's CPUs run.
RunResult supervise(PreparedRun run, Timings& timings, const Reports& reports);

}  // namespace qvm
