#include "images/demo.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <system_error>

#include "images/demo_steps.h"
#include "images/error.h"

namespace qvm::images {
namespace {

namespace fs = std::filesystem;

class TemporaryDirectory {
  public:
    TemporaryDirectory() : path_((fs::temp_directory_path() / "qvm-demo-XXXXXX").string()) {
        if (!mkdtemp(path_.data())) {
            throw std::system_error(errno, std::generic_category(), "create " + path_);
        }
    }
    ~TemporaryDirectory() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

    fs::path path() const { return path_; }

  private:
    std::string path_;
};

// A file beside its final place, gone again unless it was moved there.
class PendingFile {
  public:
    explicit PendingFile(fs::path final_path)
        : final_path_(std::move(final_path)),
          path_(final_path_.string() + "." + std::to_string(getpid()) + ".tmp") {
        if (!std::ofstream(path_)) {
            throw std::system_error(errno, std::generic_category(), "create " + path_.string());
        }
    }
    ~PendingFile() {
        std::error_code ignored;
        fs::remove(path_, ignored);
    }
    PendingFile(const PendingFile&) = delete;
    PendingFile& operator=(const PendingFile&) = delete;

    const fs::path& path() const { return path_; }
    void commit() const { fs::rename(path_, final_path_); }

  private:
    fs::path final_path_;
    fs::path path_;
};

void write_file(const fs::path& path, std::string_view bytes) {
    std::ofstream out(path, std::ios::binary);
    out.write(bytes.data(), std::ssize(bytes));
    out.close();
    if (!out) throw Error("cannot write " + path.string());
}

// Behind `env NAME=VALUE...`, if there is such a thing.
std::string program_of(const Command& command) {
    const auto is_program = [](const std::string& word) {
        return word != "env" && word.find('=') == word.npos;
    };
    return *std::ranges::find_if(command.argv, is_program);
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

DemoMachine demo_machine(DemoArchitecture architecture) {
    if (architecture == DemoArchitecture::arm64)
        return {.debian = "arm64",
                .libraries = "lib/aarch64-linux-gnu",
                .linker = "lib/ld-linux-aarch64.so.1",
                .console = "ttyAMA0",
                .efi = "aa64"};
    return {.debian = "amd64",
            .libraries = "lib/x86_64-linux-gnu",
            .linker = "lib64/ld-linux-x86-64.so.2",
            .console = "ttyS0",
            .efi = "x64",
            .bios = true};
}

void build_demo(const fs::path& output, DemoArchitecture architecture,
                const fs::path& package_cache, const Runner& run, const Progress& progress) {
    const auto machine = demo_machine(architecture);
    const TemporaryDirectory work;
    const PendingFile pending(fs::absolute(output));

    const auto packages = download_packages(
        package_cache.empty() ? work.path() : fs::absolute(package_cache), machine, run, progress);

    progress("building the initramfs");
    const auto tree = make_tree(packages, machine);
    write_file(work.path() / "vmlinuz", tree.kernel);
    write_file(work.path() / "loader.efi", tree.loader);
    write_initramfs(tree.initramfs, work.path() / "initrd", Compression::zstd);

    progress("writing the disk");
    const auto raw = make_disk(work.path(), machine, run);
    run_step(run,
             {{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw.string(),
               pending.path().string()}},
             "cannot convert the disk");
    pending.commit();
}

}  // namespace qvm::images
