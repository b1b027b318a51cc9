#include <sstream>

#include "images/demo_steps.h"
#include "images/error.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kernel_metapackage = "linux-image-cloud-amd64";

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

// apt-cache depends: the package's name, then its dependencies, indented; with --recurse, all
// packages in turn. <...> is a virtual package.
std::string dependencies(const std::string& package, bool recurse, const Runner& run) {
    std::vector<std::string> argv{"apt-cache",       "depends",       "--no-pre-depends",
                                  "--no-recommends", "--no-suggests", "--no-conflicts",
                                  "--no-breaks",     "--no-replaces", "--no-enhances"};
    if (recurse) argv.emplace_back("--recurse");
    argv.push_back(package);
    return run_step(run, {std::move(argv)},
                    "the demo guest is made of Debian packages, which apt cannot find (perhaps "
                    "`apt-get update` was never run)");
}

std::string kernel_package(const Runner& run) {
    const std::string package(kernel_metapackage);
    const std::string prefix = "  Depends: ";
    for (const auto& line : lines_of(dependencies(package, false, run))) {
        if (line.starts_with(prefix + "linux-image-")) return line.substr(prefix.size());
    }
    throw Error("apt does not say which kernel " + package + " stands for");
}

std::vector<std::string> agent_packages(const Runner& run) {
    std::vector<std::string> names;
    for (const auto& line : lines_of(dependencies("qemu-guest-agent", true, run))) {
        if (!line.empty() && line[0] != ' ' && line[0] != '<') names.push_back(line);
    }
    return names;
}

std::vector<std::string> apt_download(std::vector<std::string> packages) {
    std::vector<std::string> argv{"apt-get", "-q", "download"};
    argv.insert(argv.end(), packages.begin(), packages.end());
    return argv;
}

// Files are named PACKAGE_VERSION_ARCHITECTURE.deb; of several versions that a cache may hold, the
// one that apt would download now.
fs::path file_of(const std::string& package, const std::vector<std::string>& names) {
    for (const auto& name : names) {
        if (name.starts_with(package + "_")) return name;
    }
    throw Error("apt-get did not download " + package);
}

// `apt-get --print-uris download` prints 'URI' FILE SIZE HASH for each package.
std::vector<std::string> file_names(std::vector<std::string> argv, const Runner& run) {
    argv.insert(argv.begin() + 1, "--print-uris");
    std::vector<std::string> names;
    for (const auto& line : lines_of(run_step(run, {std::move(argv)}, "apt-get"))) {
        std::istringstream fields(line);
        std::string uri, name;
        if (fields >> uri >> name && name.ends_with(".deb")) names.push_back(name);
    }
    return names;
}

}  // namespace

DemoPackages download_packages(const fs::path& directory, const Runner& run,
                               const Progress& progress) {
    progress("asking apt for the packages");
    const auto kernel = kernel_package(run);
    const auto agent = agent_packages(run);
    auto all = agent;
    all.insert(all.end(), {kernel, "busybox-static"});
    const auto argv = apt_download(all);

    progress("downloading packages");
    run_step(run, {.argv = argv, .directory = directory}, "cannot download packages");
    const auto names = file_names(argv, run);

    DemoPackages found;
    found.kernel = directory / file_of(kernel, names);
    found.busybox = directory / file_of("busybox-static", names);
    for (const auto& package : agent) found.agent.push_back(directory / file_of(package, names));
    return found;
}

}  // namespace qvm::images
