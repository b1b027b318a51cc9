#include "support.h"

#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "images/error.h"

namespace qvm::images::test {

namespace fs = std::filesystem;

TemporaryDirectory::TemporaryDirectory() {
    auto name = (fs::temp_directory_path() / "qvm-test-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()));
    path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

File::File(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {
    REQUIRE(fd_ >= 0);
}

File::~File() {
    close(fd_);
}

std::string read_file(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return std::move(out).str();
}

void write_file(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

std::string output_of(const std::string& shell_command) {
    FILE* pipe = popen((shell_command + " 2>&1").c_str(), "re");
    REQUIRE(pipe);
    std::string output;
    char buffer[4096];
    while (const auto count = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, count);
    const int status = pclose(pipe);
    INFO(shell_command << ": " << output);
    REQUIRE(status == 0);
    return output;
}

std::string error_of(const std::function<void()>& function) {
    try {
        function();
    } catch (const Error& error) {
        return error.what();
    }
    FAIL("no images::Error was thrown");
    return {};
}

}  // namespace qvm::images::test
