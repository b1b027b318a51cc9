// qvm image demo, qvm image build-debian.

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>

#include "images/debian.h"
#include "images/demo.h"
#include "images/error.h"
#include "launcher/commands.h"
#include "launcher/confinement.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/interruption.h"
#include "launcher/machine.h"
#include "launcher/output.h"
#include "launcher/privilege.h"
#include "launcher/process.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

images::Runner runner(const Interruption& interruption) {
    return [&interruption](const images::Command& command) -> images::CommandResult {
        if (!find_program(command.argv.at(0)))
            return {.status = status::not_found,
                    .error = command.argv[0] + ": it is not installed"};
        auto result = run_tool(Tool{.argv = command.argv,
                                    .input = command.input,
                                    .directory = command.directory.string(),
                                    .stop = interruption.fd(),
                                    .on_error = command.listener});
        interruption.check();
        const int code = result.status.signal != 0 ? status::signalled + result.status.signal
                                                   : result.status.code;
        return {.status = code, .output = std::move(result.out), .error = std::move(result.err)};
    };
}

images::Progress progress(bool quiet, const Interruption& interruption) {
    return [quiet, &interruption](std::string_view step) {
        interruption.check();
        if (!quiet) say(fmt::format("qvm: {}", step));
    };
}

/// A directory of ours in the cache.
fs::path make_cache_directory(const std::string& name) {
    const auto cache = find_directories().cache;
    make_private_directory(cache);
    make_private_directory(cache / name);
    return cache / name;
}

Failure cannot_build(const fs::path& path, const std::string& why) {
    return Failure(fmt::format("build '{}': {}", path.string(), why));
}

/// Programs that are missing, and all packages that the user then needs.
void check_tools(const fs::path& path, const std::vector<images::BuildTool>& tools) {
    std::string missing, packages;
    for (const auto& [name, package] : tools) {
        const auto file = find_program(name);
        if (file && fs::exists(*file)) continue;
        missing += fmt::format("{}{}", missing.empty() ? "" : ", ", name);
        packages += fmt::format(" {}", package);
    }
    if (!missing.empty())
        throw Failure(fmt::format("build '{}': not installed: {}", path.string(), missing),
                      "apt-get install" + packages);
}

/// Does that work for the disk at `path`, and says of what the reasons are that images/ throws.
void build(const fs::path& path, const std::function<void()>& work) {
    try {
        work();
    } catch (const images::Error& error) {
        throw cannot_build(path, error.what());
    } catch (const fs::filesystem_error& error) {
        throw cannot_build(
            path, fmt::format("look at '{}': {}", error.path1().string(), error.code().message()));
    } catch (const std::system_error& error) {
        throw cannot_build(path, error.what());
    }
    print(path.string() + "\n");
}

/// The guest's files belong to many users: root makes them, if only in a user namespace.
void become_root(const fs::path& path) {
    if (::geteuid() != 0) enter_user_namespace(-1, [](const std::string&) {});
    std::uint64_t ids = 0;
    for (const auto& range : parse_id_map(read_file("/proc/self/uid_map").value_or("")))
        ids += range.count;
    constexpr std::uint64_t enough = 65536;
    if (ids < enough)
        throw Failure(fmt::format("build '{}': its files belong to many users, and you have no ids "
                                  "for those",
                                  path.string()),
                      "apt-get install uidmap, and see subuid(5); or run qvm as root");
}

/// Of builds that were killed; the caller has the directory's lock.
void remove_leftovers(const fs::path& work) {
    for (const auto& left : directories_in(work)) fs::remove_all(left);
}

}  // namespace

int image_demo(const ImageDemoOptions& options) {
    const auto architecture = options.arch.value_or(host_architecture()) == Architecture::aarch64
                                  ? images::DemoArchitecture::arm64
                                  : images::DemoArchitecture::amd64;
    check_tools(options.path, images::demo_tools(architecture));
    const auto packages = make_cache_directory("packages");
    const Interruption interruption;
    build(options.path, [&] {
        images::build_demo(options.path, architecture, packages, runner(interruption),
                           progress(options.quiet, interruption));
    });
    return status::ok;
}

int image_build_debian(const ImageBuildDebianOptions& options) {
    if (host_architecture() != Architecture::x86_64)
        throw cannot_build(options.path, fmt::format("its guests are x86_64, and this host is {}",
                                                     to_string(host_architecture())));
    check_tools(options.path, images::debian_tools);
    const auto work = make_cache_directory("debian");
    become_root(options.path);
    ::umask(S_IWGRP | S_IWOTH);
    const Interruption interruption;
    const auto lock = try_lock_file(work / "lock");
    if (!lock)
        throw cannot_build(options.path, "another build is at work in '" + work.string() + "'");
    remove_leftovers(work);
    build(options.path, [&] {
        images::build_debian(options.path, work,
                             {.packages = options.packages, .suite = options.suite},
                             runner(interruption), progress(options.quiet, interruption));
    });
    return status::ok;
}

}  // namespace qvm
