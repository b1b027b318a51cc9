#include "images/seed.h"

#include <algorithm>
#include <cctype>
#include <cstdint>

namespace qvm::images {
namespace {

constexpr std::size_t block = 2048;  // bytes
constexpr std::uint32_t first_descriptor = 16;
constexpr std::uint32_t path_table_l = 18;
constexpr std::uint32_t path_table_m = 19;
constexpr std::uint32_t root_directory = 20;
constexpr std::uint32_t first_file = 21;
constexpr std::uint32_t least_blocks = 32;
constexpr std::uint8_t directory_flag = 2;

void put(std::string& at, std::size_t offset, std::string_view text) {
    at.replace(offset, text.size(), text);
}

std::string little(std::uint32_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
    return text;
}

std::string big(std::uint32_t value, int bytes) {
    auto text = little(value, bytes);
    std::reverse(text.begin(), text.end());
    return text;
}

/// ECMA-119, 7.2.3 and 7.3.3.
std::string both(std::uint32_t value, int bytes) {
    return little(value, bytes) + big(value, bytes);
}

std::uint32_t blocks_of(std::size_t bytes) {
    return static_cast<std::uint32_t>((bytes + block - 1) / block);
}

/// ECMA-119, 9.1. The date is none.
std::string record(const std::string& name, std::uint32_t location, std::size_t size,
                   std::uint8_t flags) {
    constexpr std::size_t fixed = 33;
    std::string text(fixed + name.size() + (name.size() + 1) % 2, '\0');
    text[0] = static_cast<char>(text.size());
    put(text, 2, both(location, 4));
    put(text, 10, both(static_cast<std::uint32_t>(size), 4));
    text[25] = static_cast<char>(flags);
    put(text, 28, both(1, 2));  // of the volumes in the set
    text[32] = static_cast<char>(name.size());
    put(text, fixed, name);
    return text;
}

std::string root_record(char name) {
    return record(std::string(1, name), root_directory, block, directory_flag);
}

/// ECMA-119, 8.4.
std::string primary_descriptor(std::uint32_t blocks, std::size_t path_table_size) {
    std::string text(block, '\0');
    put(text, 0, "\1CD001\1");
    put(text, 8, std::string(64, ' '));  // the system's and the volume's identifier
    put(text, 40, "CIDATA");
    put(text, 80, both(blocks, 4));
    put(text, 120, both(1, 2) + both(1, 2) + both(block, 2));
    put(text, 132, both(static_cast<std::uint32_t>(path_table_size), 4));
    put(text, 140, little(path_table_l, 4));
    put(text, 148, big(path_table_m, 4));
    put(text, 156, root_record('\0'));
    put(text, 190, std::string(623, ' '));  // who made it
    for (std::size_t date = 813; date < 881; date += 17) put(text, date, std::string(16, '0'));
    text[881] = 1;
    return text;
}

std::string file_name(std::string name) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return name + ".;1";
}

}  // namespace

std::string make_seed(const std::vector<SeedFile>& files) {
    auto sorted = files;
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return a.name < b.name; });
    auto directory = root_record('\0') + root_record('\1');
    auto next = first_file;
    std::string contents;
    for (const auto& file : sorted) {
        directory += record(file_name(file.name), next, file.text.size(), 0);
        next += blocks_of(file.text.size());
        contents += file.text;
        contents.resize((next - first_file) * block);
    }
    // Some readers want more than the descriptors at once.
    next = std::max(next, least_blocks);
    contents.resize((next - first_file) * block);
    const auto path_table = [](const std::string& location, const std::string& parent) {
        return std::string("\1\0", 2) + location + parent + std::string(2, '\0');
    };
    const auto table = path_table(little(root_directory, 4), little(1, 2));

    std::string image(first_file * block, '\0');
    put(image, first_descriptor * block, primary_descriptor(next, table.size()));
    put(image, (first_descriptor + 1) * block,
        "\xff"
        "CD001\1");
    put(image, path_table_l * block, table);
    put(image, path_table_m * block, path_table(big(root_directory, 4), big(1, 2)));
    put(image, root_directory * block, directory);
    return image + contents;
}

}  // namespace qvm::images
