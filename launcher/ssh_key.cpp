#include "launcher/ssh_key.h"

#include <fmt/format.h>
#include <stdio.h>
#include <unistd.h>

#include <system_error>

#include "launcher/failure.h"
#include "launcher/memory_file.h"
#include "launcher/process.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

constexpr const char* key_name = "id_ed25519";

std::optional<std::string> read_public_key(const Directories& directories) {
    const auto file = own_key_file(directories);
    if (::access(file.c_str(), R_OK) != 0) return std::nullopt;
    const auto text = read_file(file.string() + ".pub");
    if (!text || text->empty()) return std::nullopt;
    return first_line(*text);
}

void move_file(const fs::path& from, const fs::path& to) {
    if (::rename(from.c_str(), to.c_str()) != 0)
        throw Failure(
            fmt::format("write '{}': {}", to.string(), std::generic_category().message(errno)));
}

/// The private key is moved to its place last: with it the pair is whole.
void make_key(const Directories& directories) {
    const auto file = own_key_file(directories);
    const auto fresh = directories.ssh() / "new";
    for (const char* end : {"", ".pub"}) ::unlink((fresh.string() + end).c_str());
    const auto result = run_tool(
        {"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "qvm", "-f", fresh.string()});
    if (result.status.code != 0 || result.status.signal != 0)
        throw Failure(
            fmt::format("make the key '{}': ssh-keygen: {}", file.string(),
                        result.err.empty() ? result.status.describe() : first_line(result.err)));
    move_file(fresh.string() + ".pub", file.string() + ".pub");
    move_file(fresh, file);
}

}  // namespace

fs::path own_key_file(const Directories& directories) {
    return directories.ssh() / key_name;
}

std::optional<std::string> own_public_key(const Directories& directories, bool make) {
    auto key = read_public_key(directories);
    if (key || !make || !find_program("ssh-keygen")) return key;
    const auto guard = lock_directory(directories.ssh());
    key = read_public_key(directories);  // somebody else was first
    if (key) return key;
    make_key(directories);
    return read_public_key(directories);
}

}  // namespace qvm
