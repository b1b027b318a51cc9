#include "images/elf.h"

#include <elf.h>

#include <cstring>

#include "images/error.h"

namespace qvm::images {
namespace {

std::string_view slice(std::string_view bytes, std::uint64_t offset, std::uint64_t size) {
    if (offset > bytes.size() || size > bytes.size() - offset) throw Error("damaged ELF file");
    return bytes.substr(offset, size);
}

template <typename T>
T read_as(std::string_view bytes, std::uint64_t offset) {
    T value;
    std::memcpy(&value, slice(bytes, offset, sizeof value).data(), sizeof value);
    return value;
}

// The text up to the next NUL byte.
std::string_view text_at(std::string_view bytes, std::uint64_t offset) {
    const auto rest = slice(bytes, offset, bytes.size() - std::min(offset, bytes.size()));
    return rest.substr(0, rest.find('\0'));
}

bool is_elf64(std::string_view bytes) {
    return bytes.size() >= sizeof(Elf64_Ehdr) && bytes.starts_with(ELFMAG) &&
           bytes[EI_CLASS] == ELFCLASS64 && bytes[EI_DATA] == ELFDATA2LSB;
}

// A section's bytes; empty if the file has none of that name.
std::string_view section(std::string_view elf, std::string_view name) {
    if (!is_elf64(elf)) return {};
    const auto header = read_as<Elf64_Ehdr>(elf, 0);
    const auto section_header = [&](std::uint64_t index) {
        return read_as<Elf64_Shdr>(elf, header.e_shoff + index * sizeof(Elf64_Shdr));
    };
    if (header.e_shnum == 0) return {};
    const auto strings = section_header(header.e_shstrndx);
    const auto names = slice(elf, strings.sh_offset, strings.sh_size);
    for (unsigned i = 0; i < header.e_shnum; ++i) {
        const auto candidate = section_header(i);
        if (candidate.sh_type == SHT_NOBITS || text_at(names, candidate.sh_name) != name) continue;
        return slice(elf, candidate.sh_offset, candidate.sh_size);
    }
    return {};
}

}  // namespace

std::vector<std::string> needed_libraries(std::string_view elf) {
    const auto dynamic = section(elf, ".dynamic");
    const auto strings = section(elf, ".dynstr");
    std::vector<std::string> names;
    for (std::uint64_t at = 0; at + sizeof(Elf64_Dyn) <= dynamic.size(); at += sizeof(Elf64_Dyn)) {
        const auto tag = read_as<Elf64_Dyn>(dynamic, at);
        if (tag.d_tag == DT_NULL) break;
        if (tag.d_tag == DT_NEEDED) names.emplace_back(text_at(strings, tag.d_un.d_val));
    }
    return names;
}

std::vector<std::string> module_info(std::string_view elf, std::string_view key) {
    auto rest = section(elf, ".modinfo");
    std::vector<std::string> values;
    while (!rest.empty()) {
        const auto line = text_at(rest, 0);
        if (line.starts_with(key) && line.substr(key.size()).starts_with('=')) {
            values.emplace_back(line.substr(key.size() + 1));
        }
        rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    }
    return values;
}

}  // namespace qvm::images
