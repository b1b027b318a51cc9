#include "launcher/firmware.h"

#include <boost/json.hpp>
#include <catch2/catch.hpp>
#include <fstream>

#include "launcher/failure.h"
#include "temporary.h"

using namespace qvm;
namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

/// A descriptor as distributions have them.
json::object example() {
    return json::parse(R"({
        "description": "UEFI firmware for x86_64",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": "/firmware/CODE.fd", "format": "raw"},
            "nvram-template": {"filename": "/firmware/VARS.fd", "format": "raw"}
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3", "verbose-dynamic"],
        "tags": []
    })")
        .as_object();
}

json::object& mapping_of(json::object& object) {
    return object["mapping"].as_object();
}

std::optional<FirmwareDescriptor> parse(const json::object& object) {
    return parse_descriptor(json::serialize(object));
}

FirmwareDescriptor descriptor(const std::string& code, const std::string& architecture,
                              const std::string& machines, std::vector<std::string> features) {
    auto object = example();
    mapping_of(object)["executable"].as_object()["filename"] = "/" + code;
    object["targets"] = json::array{
        json::object{{"architecture", architecture}, {"machines", json::array{machines}}}};
    object["features"] = json::value_from(features);
    return parse(object).value();
}

std::string chosen(const std::vector<FirmwareDescriptor>& descriptors, Architecture architecture,
                   bool secure_boot) {
    const auto firmware = choose_firmware(descriptors, architecture, secure_boot);
    return firmware ? firmware->code.filename().string() : "";
}

void write(const fs::path& file, const std::string& text) {
    fs::create_directories(file.parent_path());
    std::ofstream{file} << text;
}

}  // namespace

TEST_CASE("a descriptor: two images, and whom they are for") {
    const auto found = parse(example()).value();
    CHECK(found.firmware ==
          Firmware{"/firmware/CODE.fd", "raw", "/firmware/VARS.fd", "raw", false});
    REQUIRE(found.targets.size() == 1);
    CHECK(found.targets[0].architecture == "x86_64");
    CHECK(found.targets[0].machines == std::vector<std::string>{"pc-i440fx-*", "pc-q35-*"});
    CHECK(found.features == std::vector<std::string>{"acpi-s3", "verbose-dynamic"});
    auto object = example();
    object["features"] = json::array{"requires-smm"};
    CHECK(parse(object)->firmware.smm);
    CHECK(to_json(firmware_from(to_json(found.firmware))) == to_json(found.firmware));
}

TEST_CASE("a descriptor of firmware that is of no use here") {
    auto object = example();
    object["interface-types"] = json::array{"bios"};
    CHECK(!parse(object));
    object = example();
    mapping_of(object)["device"] = "memory";
    CHECK(!parse(object));
    object = example();
    mapping_of(object)["mode"] = "stateless";
    mapping_of(object).erase("nvram-template");
    CHECK(!parse(object));
    mapping_of(object)["mode"] = "combined";
    CHECK(!parse(object));
}

TEST_CASE("a descriptor that is wrong says what is") {
    CHECK_THROWS_WITH(parse_descriptor("{"), "is not a JSON object");
    CHECK_THROWS_WITH(parse_descriptor("{}"), "'mapping' is not an object");
    auto object = example();
    mapping_of(object)["executable"] = "/firmware/CODE.fd";
    CHECK_THROWS_WITH(parse(object), "'executable' is not an object");
    object = example();
    mapping_of(object)["executable"].as_object()["filename"] = "CODE.fd";
    CHECK_THROWS_WITH(parse(object), "'filename' is no absolute path");
    object = example();
    mapping_of(object)["nvram-template"].as_object()["format"] = "vmdk";
    CHECK_THROWS_WITH(parse(object), "'format' is neither raw nor qcow2");
    object = example();
    object["targets"] = json::array{"x86_64"};
    CHECK_THROWS_WITH(parse(object), "'targets' is not an array of objects");
}

TEST_CASE("the first firmware that fits, as Debian has them") {
    const std::vector<FirmwareDescriptor> all{
        descriptor("a64-ms", "aarch64", "virt-*", {"enrolled-keys", "secure-boot"}),
        descriptor("x64-ms", "x86_64", "pc-q35-*",
                   {"enrolled-keys", "requires-smm", "secure-boot"}),
        descriptor("x64-secboot", "x86_64", "pc-q35-*", {"requires-smm", "secure-boot"}),
        descriptor("a64", "aarch64", "virt-*", {}),
        descriptor("x64", "x86_64", "pc-q35-*", {}),
        descriptor("another", "x86_64", "pc-q35-*", {})};
    CHECK(chosen(all, Architecture::x86_64, false) == "x64");
    CHECK(chosen(all, Architecture::x86_64, true) == "x64-ms");
    CHECK(chosen(all, Architecture::aarch64, false) == "a64");
    CHECK(chosen(all, Architecture::aarch64, true) == "a64-ms");
}

TEST_CASE("no firmware of another machine, and none without the keys") {
    const std::vector<FirmwareDescriptor> all{
        descriptor("microvm", "x86_64", "microvm", {}),
        descriptor("old", "x86_64", "pc-i440fx-*", {}),
        descriptor("no-keys", "aarch64", "virt-*", {"secure-boot"})};
    CHECK(chosen(all, Architecture::x86_64, false).empty());
    CHECK(chosen(all, Architecture::aarch64, true).empty());
    CHECK(chosen(all, Architecture::aarch64, false) == "no-keys");
}

TEST_CASE("a descriptor that cannot be read hides no other") {
    const Temporary base;
    const auto find = [&](Architecture architecture) {
        return find_firmware(architecture, false, {base.path / "descriptors"});
    };
    auto object = example();
    for (const auto* key : {"executable", "nvram-template"})
        mapping_of(object)[key].as_object()["filename"] = (base.path / "code").string();
    write(base.path / "code", "");
    write(base.path / "descriptors/50-whole.json", json::serialize(object));
    CHECK(!find(Architecture::aarch64));
    write(base.path / "descriptors/40-broken.json", "{");
    fs::create_symlink(base.path / "none", base.path / "descriptors/60-dangling.json");
    REQUIRE(find(Architecture::x86_64));
    CHECK(find(Architecture::x86_64)->code == base.path / "code");
    // It may be the one.
    CHECK_THROWS_WITH(find(Architecture::aarch64), Catch::Contains("60-dangling.json': No such"));
}

TEST_CASE("descriptors count by name, and the host's hide the distribution's") {
    const Temporary base;
    const auto usr = base.path / "usr", etc = base.path / "etc", home = base.path / "home";
    write(usr / "60-plain.json", "{}");
    write(usr / "50-secure.json", "{}");
    write(usr / "40-hidden.json", "{}");
    write(usr / "README", "no descriptor");
    write(etc / "40-hidden.json", "");
    write(etc / "60-plain.json", "{}");
    write(home / "10-mine.json", "{}");
    CHECK(descriptor_files({usr, etc, home, base.path / "none"}) ==
          std::vector<fs::path>{home / "10-mine.json", usr / "50-secure.json",
                                etc / "60-plain.json"});
}
