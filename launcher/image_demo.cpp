#include <fmt/format.h>

#include "images/demo.h"
#include "images/error.h"
#include "launcher/commands.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/output.h"
#include "launcher/process.h"

namespace qvm {

namespace {

images::CommandResult run_for_images(const images::Command& command) {
    constexpr int not_found = 127;
    if (!find_program(command.argv.at(0)))
        return {.status = not_found, .error = command.argv[0] + ": it is not installed"};
    auto result = run_tool(
        Tool{.argv = command.argv, .input = command.input, .directory = command.directory});
    const int code =
        result.status.signal != 0 ? status::signalled + result.status.signal : result.status.code;
    return {.status = code, .output = std::move(result.out), .error = std::move(result.err)};
}

}  // namespace

int image_demo(const ImageDemoOptions& options) {
    const auto packages = find_directories().cache / "packages";
    make_private_directory(packages.parent_path());
    make_private_directory(packages);
    const images::Progress progress = [&](std::string_view step) {
        if (!options.quiet) say(fmt::format("qvm: {}", step));
    };
    try {
        images::build_demo(options.path, packages, run_for_images, progress);
    } catch (const images::Error& error) {
        throw Failure(fmt::format("build '{}': {}", options.path.string(), error.what()));
    }
    print(options.path.string() + "\n");
    return status::ok;
}

}  // namespace qvm
