#include "launcher/machine_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <stop_token>
#include <system_error>
#include <vector>

#include "images/seed.h"
#include "images/sparse.h"
#include "launcher/directories.h"
#include "launcher/failure.h"

namespace qvm {

namespace asio = boost::asio;
using asio::awaitable;

namespace {

/// How the kernel names QEMU's memory-backend-memfd among its descriptors.
constexpr const char* memory_link = "/memfd:memory-backend-memfd";

/// Work that blocks, while everything else goes on. It is told when nobody waits for it any more.
template <typename Work>
awaitable<void> elsewhere(Work work) {
    struct Wanted {
        std::stop_source source;
        ~Wanted() { source.request_stop(); }
    };
    asio::thread_pool worker{1};
    const Wanted wanted;
    co_await asio::co_spawn(
        worker,
        [&]() -> awaitable<void> {
            work(wanted.source.get_token());
            co_return;
        },
        asio::use_awaitable);
}

UniqueFd create_file(const std::filesystem::path& path) {
    UniqueFd fd{::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
    if (!fd) throw Failure(fmt::format("create '{}': {}", path.string(), reason()));
    return fd;
}

}  // namespace

MachineFiles::MachineFiles(const PreparedRun& run, Migration& migration, pid_t qemu,
                           std::string overlay)
    : run_(run), migration_(migration), qemu_(qemu), overlay_(std::move(overlay)) {}

awaitable<void> MachineFiles::load(bool has_memory) {
    const auto& snapshot = *run_.snapshot;
    const auto here = co_await migration_.facts();
    const auto why = misfit(snapshot.manifest().machine, here);
    if (!why.empty()) throw Failure(fmt::format("{}: {}", snapshot.what(), why));
    const bool own_memory = snapshot.has(snapshot_files::memory);
    const auto state = snapshot.open_state();
    try {
        if (own_memory && !has_memory) co_await fill_memory();
        co_await migration_.load(state.get(), own_memory);
    } catch (const std::exception& failure) {
        throw Failure(fmt::format("{}: load its state: {}", snapshot.what(), failure.what()));
    }
}

awaitable<void> MachineFiles::fill_memory() {
    const auto from = run_.snapshot->open(snapshot_files::memory);
    const auto to = open_of_qemu(memory_link, O_RDWR);
    co_await elsewhere([&](const std::stop_token& stopped) {
        images::fill_sparse(from.get(), to.get(), stopped);
    });
}

awaitable<Manifest> MachineFiles::manifest() {
    check_outside_files();
    Manifest manifest;
    manifest.machine = co_await migration_.facts();
    manifest.kvm = run_.plan.qemu.kvm;
    manifest.cpu = run_.plan.qemu.cpu;
    manifest.disk_size = run_.plan.disk_size;
    manifest.others = run_.others;
    manifest.firmware = run_.plan.firmware;
    if (!run_.image) co_return manifest;
    manifest.image = run_.image->known;
    std::size_t disks = 1;
    if (run_.snapshot) disks += run_.snapshot->manifest().disks.size();
    if (disks > snapshot_files::most_disks)
        throw Failure(fmt::format("there are {} snapshots beneath it already", disks - 1));
    for (std::size_t i = 0; i < disks; ++i) manifest.disks.push_back(snapshot_files::disk(i));
    co_return manifest;
}

/// What the guest's disk and memory are worth nothing without.
void MachineFiles::check_outside_files() const {
    auto known = run_.others;
    if (run_.image) known.insert(known.end(), run_.image->known.begin(), run_.image->known.end());
    for (const auto& file : known) {
        const UniqueFd fd{::open(file.path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
        if (fd && is_unchanged(file, known_file(file.path, {}, fd.get()))) continue;
        const auto& vm = run_.options.vm;
        const auto name = vm.image == file.path ? vm.image_text() : file.path.string();
        throw Failure(fmt::format("'{}' is another than when the VM was started", name));
    }
}

/// QEMU has by then written to its files what it held of them (it gives up its disks when a
/// migration is over).
awaitable<void> MachineFiles::save(std::filesystem::path directory) {
    const auto state = create_file(directory / snapshot_files::state);
    const bool own_memory = run_.plan.qemu.memory_file.empty();
    try {
        co_await migration_.save(state.get(), own_memory);
    } catch (const Failure&) {
        // QEMU does not tell why.
        constexpr off_t some = 1024 * 1024;
        const auto end = ::lseek(state.get(), 0, SEEK_END);
        const int error = ::posix_fallocate(state.get(), end, some);
        if (error == 0) throw;
        throw Failure(fmt::format("write '{}': {}", (directory / snapshot_files::state).string(),
                                  std::generic_category().message(error)));
    }
    struct Copy {
        std::filesystem::path path;
        UniqueFd from, to;
    };
    std::vector<Copy> copies;
    const auto add = [&](const std::string& of_qemu, const std::string& name) {
        const auto path = directory / name;
        copies.push_back({path, open_of_qemu(of_qemu, O_RDONLY), create_file(path)});
    };
    if (own_memory) add(memory_link, snapshot_files::memory);
    if (run_.image) add(overlay_, snapshot_files::disk(0));
    co_await elsewhere([&](const std::stop_token& stopped) {
        for (const auto& copy : copies) try {
                images::copy_sparse(copy.from.get(), copy.to.get(), stopped);
            } catch (const std::system_error& error) {
                throw Failure(
                    fmt::format("write '{}': {}", copy.path.string(), error.code().message()));
            }
    });
}

awaitable<void> MachineFiles::adopt(std::filesystem::path directory, const Manifest& manifest) {
    const auto seed = directory / snapshot_files::seed;
    if (!run_.plan.seed.empty()) write_file(seed, images::make_seed(run_.plan.seed));
    if (!run_.snapshot) co_return;
    const auto& parent = *run_.snapshot;
    co_await elsewhere([&](const std::stop_token&) {
        if (parent.has(snapshot_files::seed)) parent.link(snapshot_files::seed, seed);
        for (std::size_t i = 1; i < manifest.disks.size(); ++i)
            parent.link(parent.manifest().disks[i - 1], directory / manifest.disks[i]);
    });
}

/// A file that only QEMU has, known by what the kernel says of its descriptor.
UniqueFd MachineFiles::open_of_qemu(const std::string& target, int access) const {
    const auto directory = fmt::format("/proc/{}/fd", qemu_);
    for (const auto& entry : std::filesystem::directory_iterator{directory}) {
        std::error_code ignored;
        if (!std::filesystem::read_symlink(entry, ignored).string().starts_with(target)) continue;
        UniqueFd fd{::open(entry.path().c_str(), access | O_CLOEXEC)};
        if (fd) return fd;
        throw Failure(fmt::format("open '{}': {}", entry.path().string(), reason()));
    }
    throw Failure(fmt::format("find '{}' among QEMU's files: there is none", target));
}

}  // namespace qvm
