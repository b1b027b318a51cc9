#include "images/image_info.h"

#include <algorithm>
#include <boost/json.hpp>
#include <limits>

#include "images/error.h"

namespace qvm::images {
namespace {

namespace json = boost::json;

constexpr std::size_t max_reason = 300;

const json::object& no_object() {
    static const json::object empty;
    return empty;
}

const json::object& object_at(const json::object& parent, std::string_view key) {
    const auto* value = parent.if_contains(key);
    return value && value->is_object() ? value->get_object() : no_object();
}

std::string string_at(const json::object& parent, std::string_view key) {
    const auto* value = parent.if_contains(key);
    if (!value) return {};
    if (!value->is_string()) throw Error("qemu-img: '" + std::string(key) + "' is not a string");
    return std::string(value->get_string());
}

bool flag_at(const json::object& parent, std::string_view key) {
    const auto* value = parent.if_contains(key);
    return value && value->is_bool() && value->get_bool();
}

std::uint64_t size_at(const json::object& parent, std::string_view key) {
    const auto* value = parent.if_contains(key);
    // Numbers up to 2^63-1 are parsed as int64, larger ones as uint64 or double.
    if (!value || !value->is_int64() || value->get_int64() < 0) {
        throw Error("qemu-img: '" + std::string(key) + "' is not a size");
    }
    return static_cast<std::uint64_t>(value->get_int64());
}

json::object parse_object(std::string_view text) {
    json::error_code error;
    auto value = json::parse(text, error);
    if (error) throw Error("qemu-img printed no JSON: " + error.message());
    if (!value.is_object()) throw Error("qemu-img printed no JSON object");
    return std::move(value.get_object());
}

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

std::string printable(std::string_view text) {
    std::string out(text.substr(0, max_reason));
    std::ranges::replace_if(
        out, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
    return out;
}

}  // namespace

std::vector<std::string> probe_command(const std::string& format, const std::string& path) {
    return {"qemu-img", "info", "--output=json", "-f", format, path};
}

ImageInfo parse_probe(std::string_view text) {
    const auto root = parse_object(text);
    const auto& specific = object_at(object_at(root, "format-specific"), "data");
    ImageInfo info;
    info.format = string_at(root, "format");
    if (info.format.empty()) throw Error("qemu-img does not name the image's format");
    info.virtual_size = size_at(root, "virtual-size");
    info.actual_size = root.contains("actual-size") ? size_at(root, "actual-size") : 0;
    info.backing_file = string_at(root, "backing-filename");
    info.backing_format = string_at(root, "backing-filename-format");
    info.data_file = string_at(specific, "data-file");
    info.encrypted = flag_at(root, "encrypted");
    info.dirty = flag_at(root, "dirty-flag");
    info.corrupt = flag_at(specific, "corrupt");
    return info;
}

std::string probe_failure(std::string_view text) {
    if (contains(text, "Failed to get ") && contains(text, " lock")) {
        return "is in use by another process";
    }
    if (contains(text, "to be a regular file")) return "is not a regular file";
    // qemu-img: Could not open 'PATH': Could not open 'PATH': REASON
    auto line = text.substr(0, text.find('\n'));
    const std::string_view tool = "qemu-img: ";
    if (line.starts_with(tool)) line.remove_prefix(tool.size());
    if (const auto quote = line.rfind("': "); quote != line.npos) line.remove_prefix(quote + 3);
    return line.empty() ? "qemu-img cannot read it" : printable(line);
}

void check_format(const std::string& format) {
    if (format != "qcow2" && format != "raw") {
        throw Error("its format is " + format +
                    "; only qcow2 and raw are supported (qvm image import converts it)");
    }
}

void check_backing_name(std::string_view name, bool trust_backing) {
    if (name.starts_with("json:"))
        throw Error("its backing file is a block device description (json:)");
    // What QEMU takes for a protocol: path_has_protocol() in its block.c.
    if (const auto end = name.find_first_of(":/"); end != name.npos && name[end] == ':')
        throw Error("its backing file, " + printable(name) + ", is no file of this host");
    if (!trust_backing) {
        throw Error("it names a backing file, " + printable(name) +
                    ", and a guest could have written that");
    }
}

void check_image(const ImageInfo& info, bool trust_backing) {
    if (info.encrypted) throw Error("encrypted images are not supported");
    if (info.virtual_size == 0) throw Error("not a disk image: it is empty");
    if (!info.data_file.empty()) {
        throw Error("it names a data file, " + printable(info.data_file) +
                    ", and a guest could have written that");
    }
    if (!info.backing_file.empty()) check_backing_name(info.backing_file, trust_backing);
}

}  // namespace qvm::images
