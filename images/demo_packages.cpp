#include <sstream>

#include "images/demo_steps.h"
#include "images/error.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}

// apt of one architecture.
class Apt {
  public:
    // Of another architecture than the host's it has lists of its own, in `directory`, and no
    // package is installed there: dpkg does not come to know of it (apt.conf(5)).
    Apt(const fs::path& directory, const std::string& architecture, const Runner& run) : run_(run) {
        const auto native = run_step(run, {{"dpkg", "--print-architecture"}}, "dpkg");
        if (native == architecture + "\n") return;
        const auto own = directory / ("apt-" + architecture);
        fs::create_directories(own);
        for (const auto& option :
             {"APT::Architecture=" + architecture, "APT::Architectures::=" + architecture,
              "Dir::State=" + own.string(), "Dir::Cache=" + own.string(),
              std::string("Dir::State::status=/dev/null")})
            options_.insert(options_.end(), {"-o", option});
        run_step(run, {words("apt-get", {"-q", "update"})},
                 "cannot get apt's package lists of " + architecture);
    }

    // `apt-cache depends`: the package's name, then its dependencies, indented; with --recurse, all
    // packages in turn. <...> is a virtual package.
    std::vector<std::string> dependencies(const std::string& package, bool recurse) const {
        auto argv =
            words("apt-cache", {"depends", "--no-pre-depends", "--no-recommends", "--no-suggests",
                                "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"});
        if (recurse) argv.emplace_back("--recurse");
        argv.push_back(package);
        return lines_of(run_step(run_, {std::move(argv)},
                                 "the demo guest is made of Debian packages, which apt cannot find "
                                 "(perhaps `apt-get update` was never run)"));
    }

    // The files' names. Those that are in `directory` with the right hash stay.
    std::vector<std::string> download(const fs::path& directory,
                                      const std::vector<std::string>& packages) const {
        auto argv = words("apt-get", {"-q", "download"});
        argv.insert(argv.end(), packages.begin(), packages.end());
        run_step(run_, {.argv = argv, .directory = directory}, "cannot download packages");
        // 'URI' FILE SIZE HASH for each package that is not in the working directory by now.
        argv.insert(argv.begin() + 1, "--print-uris");
        const Command tell{.argv = std::move(argv), .directory = "/"};
        std::vector<std::string> names;
        for (const auto& line : lines_of(run_step(run_, tell, "apt-get"))) {
            std::istringstream fields(line);
            std::string uri, name;
            if (fields >> uri >> name && name.ends_with(".deb")) names.push_back(name);
        }
        return names;
    }

  private:
    std::vector<std::string> words(const char* program,
                                   const std::vector<std::string>& more) const {
        std::vector<std::string> argv{program};
        argv.insert(argv.end(), options_.begin(), options_.end());
        argv.insert(argv.end(), more.begin(), more.end());
        return argv;
    }

    const Runner& run_;
    std::vector<std::string> options_;
};

std::string kernel_package(const Apt& apt, const std::string& architecture) {
    const std::string package = "linux-image-cloud-" + architecture;
    const std::string prefix = "  Depends: ";
    for (const auto& line : apt.dependencies(package, false)) {
        if (line.starts_with(prefix + "linux-image-")) return line.substr(prefix.size());
    }
    throw Error("apt does not say which kernel " + package + " stands for");
}

std::vector<std::string> agent_packages(const Apt& apt) {
    std::vector<std::string> names;
    for (const auto& line : apt.dependencies("qemu-guest-agent", true)) {
        if (!line.empty() && line[0] != ' ' && line[0] != '<') names.push_back(line);
    }
    return names;
}

// Files are named PACKAGE_VERSION_ARCHITECTURE.deb; of several versions that a cache may hold, the
// one that apt would download now.
fs::path file_of(const std::string& package, const std::vector<std::string>& names) {
    for (const auto& name : names) {
        if (name.starts_with(package + "_")) return name;
    }
    throw Error("apt-get did not download " + package);
}

}  // namespace

DemoPackages download_packages(const fs::path& directory, const DemoMachine& machine,
                               const Runner& run, const Progress& progress) {
    progress("asking apt for the packages");
    const Apt apt(directory, machine.debian, run);
    const auto kernel = kernel_package(apt, machine.debian);
    const auto agent = agent_packages(apt);
    auto all = agent;
    all.insert(all.end(), {kernel, "busybox-static", "systemd-boot-efi"});

    progress("downloading packages");
    const auto names = apt.download(directory, all);

    DemoPackages found;
    found.kernel = directory / file_of(kernel, names);
    found.busybox = directory / file_of("busybox-static", names);
    found.loader = directory / file_of("systemd-boot-efi", names);
    for (const auto& package : agent) found.agent.push_back(directory / file_of(package, names));
    return found;
}

}  // namespace qvm::images
