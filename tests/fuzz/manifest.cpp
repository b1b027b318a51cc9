// A snapshot's manifest, which may come from elsewhere (`qvm snapshot import`): whatever stands in
// the place of its values, it is a manifest or a Failure.
#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "launcher/failure.h"
#include "launcher/snapshot.h"
#include "launcher/values.h"

namespace {

namespace json = boost::json;

json::object sample() {
    qvm::Manifest manifest;
    manifest.created = "2026-01-31T12:00:00Z";
    manifest.vm.image = "/images/disk.qcow2";
    manifest.vm.net = qvm::parse_net("nat,subnet=192.168.26.0/24,address=192.168.26.10,mtu=1500");
    manifest.vm.publish = {qvm::parse_publish("8080:80")};
    manifest.vm.drives = {qvm::parse_drive("/images/data.raw,ro,format=raw")};
    manifest.machine = {.qemu = "7.2.22",
                        .machine = "pc-q35-7.2",
                        .cpu = {{{"cpuid", "1.0.ECX"}, {"features", 129}}}};
    manifest.cpu = "max";
    manifest.disk_size = 1 << 30;
    manifest.disks = {"disk-0", "disk-1"};
    manifest.image = {{"/images/disk.qcow2", "qcow2", 1000, 5, "abc"}};
    manifest.others = {{"/images/data.raw", "raw", 512, 6, "def"}};
    manifest.firmware = qvm::Firmware{.code = "/firmware/CODE.fd",
                                      .code_format = "raw",
                                      .variables = "/firmware/VARS.fd",
                                      .variables_format = "raw"};
    manifest.files = {{"memory", 1 << 30, "abc"}, {"state", 4, "def"}};
    return to_json(manifest);
}

void list(json::value& value, std::vector<json::value*>& values) {
    values.push_back(&value);
    if (auto* array = value.if_array())
        for (auto& item : *array) list(item, values);
    else if (auto* object = value.if_object())
        for (auto& [key, item] : *object) list(item, values);
}

json::value replacement(std::uint8_t kind, std::string_view text) {
    switch (kind % 8) {
        case 0:
            return nullptr;
        case 1:
            return true;
        case 2:
            return static_cast<std::int64_t>(text.size()) - 2;
        case 3:
            return UINT64_MAX - text.size();
        case 4:
            return 1.5;
        case 5:
            return json::array(text.size(), json::value(text));
        case 6:
            return json::object{{text, text}};
        default:
            return json::value(text);
    }
}

}  // namespace

/// Triples of bytes: which value, what by, and the length of the text that follows.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const auto whole = sample();
    json::value root = whole;
    for (std::string_view rest{reinterpret_cast<const char*>(data), size}; rest.size() >= 3;) {
        std::vector<json::value*> values;
        list(root, values);
        const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(rest[i]); };
        const auto text = rest.substr(3, byte(2) % 64);
        // The root stays an object.
        if (values.size() > 1)
            *values[1 + byte(0) % (values.size() - 1)] = replacement(byte(1), text);
        rest.remove_prefix(3 + text.size());
    }
    try {
        const auto manifest = qvm::parse_manifest(root.as_object());
        // What was read is written as something that reads the same.
        const auto written = to_json(manifest);
        if (to_json(qvm::parse_manifest(written)) != written) __builtin_trap();
        (void)qvm::clone_options(manifest, {});
    } catch (const qvm::Failure&) {
        // It says what is wrong.
    }
    return 0;
}
