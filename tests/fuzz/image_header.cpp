// A guest, or whoever made the image, chooses every byte of it.
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "images/contents.h"
#include "images/error.h"
#include "images/overlay.h"

namespace {

std::string text_of(int fd) {
    std::string text(static_cast<std::size_t>(lseek(fd, 0, SEEK_END)), '\0');
    if (pread(fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) abort();
    return text;
}

void put(std::string& bytes, std::size_t offset, std::string_view what) {
    if (bytes.size() < offset + what.size()) bytes.resize(offset + what.size());
    bytes.replace(offset, what.size(), what);
}

std::string empty_qcow2(int fd) {
    qvm::images::write_overlay(fd, 1 << 20);
    return text_of(fd);
}

std::string vmdk() {
    std::string bytes(4096, '\0');
    put(bytes, 0, {"KDMV\1\0\0\0\0\0\0\0\0\10\0\0\0\0\0\0\200\0\0\0\0\0\0\0\1", 29});
    put(bytes, 44, {"\0\2\0\0\0\0\0\0\0\0\0\0\2", 13});
    put(bytes, 512, "# Disk DescriptorFile\ncreateType=\"monolithicSparse\"\n");
    return bytes;
}

std::string vdi() {
    std::string bytes(4096, '\0');
    put(bytes, 0x40, {"\x7f\x10\xda\xbe\1\0\1\0\0\0\0\0\1", 13});
    put(bytes, 0x155, "\2");
    put(bytes, 0x169, "\2");
    put(bytes, 0x172, "\20");
    put(bytes, 0x17a, "\20");
    put(bytes, 0x180, "\1");
    return bytes;
}

std::string vhdx() {
    std::string bytes(448 * 1024, '\0');
    put(bytes, 0, "vhdxfile");
    put(bytes, 192 * 1024, {"regi\0\0\0\0\2", 9});
    constexpr std::string_view table{
        "\x66\x77\xc2\x2d\x23\xf6\x00\x42\x9d\x64\x11\x5e\x9b\xfd\x4a"
        "\x08\0\0\4\0\0\0\0\0\0\0\1\0",
        28};
    constexpr std::string_view metadata{
        "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f"
        "\x88\x6e\0\0\5\0\0\0\0\0\0\0\2\0",
        28};
    put(bytes, 192 * 1024 + 16, table);
    put(bytes, 192 * 1024 + 48, metadata);
    const std::size_t items = 320 * 1024;
    put(bytes, items, {"metadata\0\0\2", 11});
    put(bytes, items + 32,
        {"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b\0\0\1\0\10", 21});
    put(bytes, items + 64,
        {"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8\10\0\1\0\10", 21});
    put(bytes, items + 64 * 1024 + 2, "\20");
    put(bytes, items + 64 * 1024 + 10, "\20");
    return bytes;
}

std::string vhd() {
    std::string bytes(4096, '\0');
    put(bytes, 0, "conectix");
    put(bytes, 22, "\2");
    put(bytes, 53, "\20");
    put(bytes, 63, "\3");
    put(bytes, 512, "cxsparse");
    put(bytes, 512 + 22, "\6");
    put(bytes, 512 + 31, "\1");
    put(bytes, 512 + 33, "\20");
    return bytes;
}

}  // namespace

/// Which image it begins as, and then: a place in it, in three bytes, and what stands there.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace qvm::images;
    static const int fd = memfd_create("image", MFD_CLOEXEC);
    static const std::array images{std::string{}, empty_qcow2(fd), vmdk(), vdi(), vhdx(), vhd()};
    const std::string_view input{reinterpret_cast<const char*>(data), size};
    if (input.empty()) return 0;
    auto bytes = images[static_cast<unsigned char>(input[0]) % images.size()];
    if (bytes.empty()) bytes = input.substr(1);
    for (auto rest = input.substr(1); rest.size() >= 4 && !bytes.empty(); rest.remove_prefix(4)) {
        const auto byte = [&](std::size_t i) {
            return static_cast<std::size_t>(static_cast<unsigned char>(rest[i]));
        };
        bytes[(byte(0) << 16 | byte(1) << 8 | byte(2)) % bytes.size()] = rest[3];
    }
    if (ftruncate(fd, 0) < 0 ||
        pwrite(fd, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
        abort();
    }
    (void)is_whole_disk(std::string_view{bytes}.substr(0, 512));
    for (const bool trust_backing : {false, true}) {
        try {
            const auto format = check_header(fd, trust_backing);
            check_contents(fd, {.format = format, .virtual_size = 512}, false);
        } catch (const Error&) {
            // It says what is wrong.
        }
    }
    try {
        check_contents(fd, {.format = "qcow2", .virtual_size = 512}, false);
    } catch (const Error&) {
        // Likewise.
    }
    return 0;
}
