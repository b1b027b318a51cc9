#include "images/build_steps.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <system_error>

#include "images/error.h"

namespace qvm::images {

namespace fs = std::filesystem;

namespace {

// Behind `env NAME=VALUE...`, if there is such a thing.
std::string program_of(const Command& command) {
    const auto is_program = [](const std::string& word) {
        return word != "env" && word.find('=') == word.npos;
    };
    return *std::ranges::find_if(command.argv, is_program);
}

std::string make_directory(const fs::path& parent) {
    auto name = (parent / "qvm-build-XXXXXX").string();
    if (!mkdtemp(name.data())) {
        throw std::system_error(errno, std::generic_category(), "create " + name);
    }
    return name;
}

}  // namespace

std::string run_step(const Runner& run, const Command& command, std::string_view what) {
    auto result = run(command);
    if (result.status == 0) return result.output;
    if (result.status == 127) throw Error("the program " + program_of(command) + " is missing");
    auto reason = result.error;
    while (reason.ends_with('\n')) reason.pop_back();
    reason.erase(0, reason.rfind('\n') + 1);
    throw Error(std::string(what) + ": " +
                (reason.empty() ? "status " + std::to_string(result.status) : reason));
}

TemporaryDirectory::TemporaryDirectory(const fs::path& parent) : path_(make_directory(parent)) {}

TemporaryDirectory::~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

void write_file(const fs::path& path, std::string_view bytes) {
    std::ofstream out(path, std::ios::binary);
    out.write(bytes.data(), std::ssize(bytes));
    out.close();
    if (!out) throw Error("cannot write " + path.string());
}

void convert_to_qcow2(const fs::path& raw, const fs::path& to, bool compress, const Runner& run) {
    std::vector<std::string> argv{"qemu-img", "convert"};
    if (compress) argv.emplace_back("-c");
    argv.insert(argv.end(), {"-f", "raw", "-O", "qcow2", raw.string(), to.string()});
    run_step(run, {std::move(argv)}, "cannot convert the disk");
}

}  // namespace qvm::images
