#include "launcher/any_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "images/error.h"
#include "launcher/failure.h"
#include "launcher/process.h"
#include "temporary.h"

using namespace qvm;

namespace {

namespace fs = std::filesystem;

std::string shell(const fs::path& directory, const std::string& script) {
    const auto done =
        run_tool(Tool{.argv = {"sh", "-euc", script}, .directory = directory.string()});
    INFO(script << ": " << done.err);
    REQUIRE(done.status.code == 0);
    return done.out;
}

struct stat status_of(int fd) {
    struct stat status {};
    REQUIRE(::fstat(fd, &status) == 0);
    return status;
}

/// A directory with a raw disk of 3 MiB in it, and what is made of that.
struct Disks {
    Disks() { shell(temporary.path, "head -c 300000 /dev/urandom >raw; truncate -s 3M raw"); }

    AnyDisk open(const std::string& name, const AnyDiskOptions& options = {}) {
        draft.reset(::open((temporary.path / "draft").c_str(),
                           O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
        return open_any_disk(temporary.path / name, draft.get(), temporary.path, options);
    }

    /// It is the same disk as `raw`.
    void check(const AnyDisk& disk, const std::string& name) {
        CHECK(disk.is_draft ==
              (status_of(disk.image.fd.get()).st_ino == status_of(draft.get()).st_ino));
        CHECK(status_of(draft.get()).st_uid == ::geteuid());  // qemu-img has it no longer
        CHECK(disk.image.facts.virtual_size == 3 << 20);
        CHECK(disk.image.backing.empty());
        shell(temporary.path, "qemu-img compare -q -f raw -F " + disk.image.facts.format + " raw " +
                                  (disk.is_draft ? "draft" : name));
    }

    Temporary temporary;
    UniqueFd draft;
};

}  // namespace

TEST_CASE("a qcow2 or raw disk is taken as it is") {
    Disks disks;
    shell(disks.temporary.path, "qemu-img convert -O qcow2 raw qcow2");
    for (const auto* format : {"raw", "qcow2"}) {
        const auto disk = disks.open(format);
        CHECK_FALSE(disk.is_draft);
        CHECK(disk.image.facts.format == format);
        disks.check(disk, format);
    }
}

TEST_CASE("a disk of another format becomes a qcow2 image") {
    Disks disks;
    const std::string format =
        GENERATE("vmdk", "vmdk -o subformat=streamOptimized", "vdi", "vhdx", "vpc -o force_size");
    CAPTURE(format);
    shell(disks.temporary.path, "qemu-img convert -O " + format + " raw other");
    std::set<std::string> told;
    const auto disk = disks.open("other", {.progress = [&](std::string_view what, double part) {
                                     told.emplace(what);
                                     CHECK((part >= 0 && part <= 1));
                                 }});
    CHECK(disk.is_draft);
    CHECK(disk.image.facts.format == "qcow2");
    CHECK(told == std::set<std::string>{"checking", "converting"});
    disks.check(disk, "other");
}

TEST_CASE("a compressed disk is unpacked, and converted where it has to be") {
    Disks disks;
    const std::string format = GENERATE("raw", "qcow2", "vmdk");
    CAPTURE(format);
    shell(disks.temporary.path, "qemu-img convert -O " + format +
                                    " raw other; gzip -c other >gz; xz -c other >xz; "
                                    "zstd -q -c other >zst");
    for (const auto* packed : {"gz", "xz", "zst"}) {
        CAPTURE(packed);
        const auto disk = disks.open(packed);
        CHECK(disk.is_draft);
        CHECK(disk.image.facts.format == (format == "raw" ? "raw" : "qcow2"));
        disks.check(disk, packed);
    }
}

TEST_CASE("what is beneath a trusted image becomes part of it") {
    Disks disks;
    shell(disks.temporary.path,
          "qemu-img create -q -f qcow2 -F raw -b raw middle; "
          "qemu-img create -q -f qcow2 -F qcow2 -b middle top; gzip -k top; "
          "chmod 600 raw middle top");
    for (const auto* name : {"top", "top.gz"}) {
        CHECK_THROWS_WITH(disks.open(name), Catch::Contains("it names a backing file, middle"));
        const auto disk = disks.open(name, {.trust_backing = true});
        CHECK(disk.is_draft);
        disks.check(disk, name);
    }
    shell(disks.temporary.path, "! qemu-img info draft | grep backing");
}

TEST_CASE("what is no disk is refused, with the reason") {
    Disks disks;
    shell(
        disks.temporary.path,
        "echo text >text; gzip -k text; gzip -c text.gz >twice; printf '\\037\\213x' >bad.gz; "
        ">empty; gzip -k empty; "
        "tar -cf ova raw; gzip -k ova; cp raw cd; dd if=/dev/zero of=cd bs=512 count=1 "
        "conv=notrunc status=none; printf CD001 | dd of=cd bs=1 seek=32769 conv=notrunc "
        "status=none; "
        "qemu-img convert -O qcow2 raw damaged; cp damaged locked; "
        // How it is encrypted; and the offset in the first entry of the only L2 table.
        "printf '\\2' | dd of=locked bs=1 seek=35 conv=notrunc status=none; "
        "printf '\\200\\0\\0\\0\\17\\0\\0\\0' | dd of=damaged bs=1 seek=262144 conv=notrunc "
        "status=none; for format in vdi vmdk vhdx vpc; do qemu-img convert -O $format raw $format; "
        "truncate -s -100K $format; done; truncate -s 9M vhdx");
    for (const auto& [name, why] :
         std::map<std::string, std::string>{{"text", "not a disk image"},
                                            {"text.gz", "not a disk image"},
                                            {"bad.gz", "cannot be unpacked"},
                                            {"twice", "compressed twice"},
                                            {"empty", "not a disk image: it is empty"},
                                            {"empty.gz", "not a disk image: it is empty"},
                                            {"ova", "tar -xf it, and import the disk"},
                                            {"ova.gz", "tar -xf it, and import the disk"},
                                            {"cd", "of a CD, not of a disk"},
                                            {"locked", "encrypted"},
                                            {"damaged", "damaged image"},
                                            {"vdi", "truncated VDI image"},
                                            {"vmdk", "points after EOF"},
                                            {"vhdx", "damaged image"},
                                            {"vpc", "truncated"}}) {
        CAPTURE(name);
        try {
            disks.open(name);
            FAIL("it was taken");
        } catch (const images::Error& error) {
            // Whoever asked knows it by a name.
            CHECK_THAT(error.what(), !Catch::Contains(disks.temporary.path.string()));
            CHECK_THAT(error.what(), Catch::Matches("(?:.*)(?:" + why + ")(?:.*)"));
            CHECK((name == "damaged") == !error.hint().empty());  // qcow2 can be repaired
        }
    }
}

TEST_CASE("what the host cannot do is no fault of the file") {
    Disks disks;
    shell(disks.temporary.path, "qemu-img convert -O qcow2 raw qcow2");
    CHECK_THROWS_AS(disks.open("missing"), Failure);
    const std::string path = ::getenv("PATH");
    ::setenv("PATH", disks.temporary.path.c_str(), 1);
    for (const auto* script : {"kill -9 $$", "echo 'qemu-img: Too many open files' >&2; exit 1"}) {
        CAPTURE(script);
        std::ofstream(disks.temporary.path / "qemu-img") << "#!/bin/sh\n" << script << '\n';
        fs::permissions(disks.temporary.path / "qemu-img", fs::perms::all);
        fs::permissions(disks.temporary.path, fs::perms::all);
        const auto is_other = [](const std::exception& error) {
            return dynamic_cast<const images::Error*>(&error) == nullptr;
        };
        CHECK_THROWS_MATCHES(disks.open("qcow2"), std::exception,
                             Catch::Predicate<std::exception>(is_other));
    }
    ::setenv("PATH", path.c_str(), 1);
}

TEST_CASE("damage is told when the first of it is found, however much there is") {
    Disks disks;
    // 128 TiB, each table of the lowest level the same one, of entries that cannot be.
    shell(disks.temporary.path, "qemu-img create -q -f qcow2 all 128T; truncate -s %64K all");
    std::fstream image{disks.temporary.path / "all",
                       std::ios::in | std::ios::out | std::ios::binary};
    const auto fill = [&](std::uint64_t offset, std::size_t count, std::uint64_t value) {
        std::string bytes;
        for (std::size_t i = 0; i < count; ++i)
            for (int shift = 56; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
        image.seekp(static_cast<std::streamoff>(offset)) << bytes << std::flush;
    };
    const auto end = fs::file_size(disks.temporary.path / "all");
    constexpr auto in_use = std::uint64_t{1} << 63;
    constexpr std::uint64_t l1_table = 0x30000;
    fill(l1_table, 262144, in_use | end);
    fill(end, 8192, in_use | 0x50200);
    const auto begun = std::chrono::steady_clock::now();
    CHECK_THROWS_WITH(disks.open("all"), Catch::Contains("damaged image"));
    CHECK(std::chrono::steady_clock::now() - begun < std::chrono::seconds{10});
}

TEST_CASE("whatever bytes are changed, it is a disk, or it is refused in one line") {
    Disks disks;
    const std::string format = GENERATE("qcow2 -o cluster_size=512", "vmdk",
                                        "vmdk -o subformat=streamOptimized", "vdi", "vhdx", "vpc");
    CAPTURE(format);
    shell(disks.temporary.path, "qemu-img convert -O " + format + " raw other");
    std::string whole(fs::file_size(disks.temporary.path / "other"), '\0');
    std::ifstream(disks.temporary.path / "other", std::ios::binary)
        .read(whole.data(), static_cast<std::streamsize>(whole.size()));
    // Headers and tables, in any of these formats.
    std::vector<std::size_t> used;
    for (std::size_t i = 0; i < whole.size() && used.size() < 300; ++i)
        if (whole[i] != 0) used.push_back(i);

    std::mt19937 random{20260131};
    const auto below = [&](std::size_t end) { return random() % end; };
    constexpr int tries = 30;
    int taken = 0;
    for (int i = 0; i < tries; ++i) {
        CAPTURE(i);
        auto changed = whole;
        for (auto changes = 1 + below(4); changes > 0; --changes) {
            const auto at = used[below(used.size())] + below(2);
            changed[at % changed.size()] = static_cast<char>(below(256));
        }
        std::ofstream(disks.temporary.path / "changed", std::ios::binary) << changed;
        try {
            disks.open("changed");
            ++taken;
        } catch (const images::Error& error) {
            const std::string why = error.what();
            CHECK(why.find('\n') == why.npos);
        }
    }
    CHECK((taken > 0 && taken < tries));
}
