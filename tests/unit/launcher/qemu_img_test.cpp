#include "launcher/qemu_img.h"

#include <fcntl.h>
#include <linux/magic.h>

#include <catch2/catch.hpp>

#include "launcher/process.h"
#include "temporary.h"

using namespace qvm;

TEST_CASE("nothing is opened that the lowest image of a chain names") {
    const Temporary temporary;
    const auto shell = [&](const std::string& script) {
        const auto done =
            run_tool(Tool{.argv = {"sh", "-euc", script}, .directory = temporary.path.string()});
        INFO(done.err);
        REQUIRE(done.status.code == 0);
    };
    const std::string format = GENERATE("qcow2", "qed", "vmdk");
    CAPTURE(format);
    const auto below = format == "vmdk" ? format : "raw";
    shell(
        "head -c 1M /dev/urandom >raw; truncate -s 1M zeros; >to; "
        "qemu-img convert -O " +
        below +
        " raw below; "
        "qemu-img create -q -f " +
        format + " -F " + below + " -b below top");
    const UniqueFd top{::open((temporary.path / "top").c_str(), O_RDONLY | O_CLOEXEC)};
    const UniqueFd to{::open((temporary.path / "to").c_str(), O_RDWR | O_CLOEXEC)};
    convert_image({{{top.get(), format}}}, to.get(), {});
    shell("qemu-img compare -q -f raw -F qcow2 zeros to");
}

TEST_CASE("a capability counts for files of this host, and servers decide about theirs") {
    constexpr std::uint32_t zfs = 0x2fc12fc1;
    for (const auto here :
         std::vector<std::uint32_t>{EXT4_SUPER_MAGIC, MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC,
                                    ISOFS_SUPER_MAGIC, SQUASHFS_MAGIC, zfs})
        CHECK_FALSE(is_remote(here));
    for (const auto there : std::vector<std::uint32_t>{NFS_SUPER_MAGIC, SMB2_SUPER_MAGIC,
                                                       FUSE_SUPER_MAGIC, V9FS_MAGIC})
        CHECK(is_remote(there));
}
