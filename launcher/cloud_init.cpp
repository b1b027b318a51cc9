#include "launcher/cloud_init.h"

#include <fmt/format.h>
#include <yaml.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cctype>
#include <memory>
#include <system_error>

#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/image_file.h"
#include "launcher/values.h"

namespace qvm {

namespace json = boost::json;

namespace {

constexpr std::string_view config_header = "#cloud-config";

/// What else user data may begin with (cloud-init's handlers, INCLUSION_TYPES_MAP, MIME and gzip).
constexpr std::array<std::string_view, 8> other_headers{
    "#!",           "#include",      "#cloud-boothook",    "#part-handler",
    "content-type", "mime-version:", "## template: jinja", "\x1f\x8b"};
constexpr std::string_view archive_header = "#cloud-config-archive";

std::string lower(std::string_view text) {
    std::string result{text};
    std::transform(result.begin(), result.end(), result.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return result;
}

/// Throws Failure with the line of the first thing that is wrong.
void check_yaml_mapping(std::string_view text) {
    yaml_parser_t parser;
    if (yaml_parser_initialize(&parser) == 0) throw std::bad_alloc{};
    const std::unique_ptr<yaml_parser_t, decltype(&yaml_parser_delete)> owner{&parser,
                                                                              yaml_parser_delete};
    yaml_parser_set_input_string(&parser, reinterpret_cast<const unsigned char*>(text.data()),
                                 text.size());
    bool in_document = false;
    for (auto type = YAML_NO_EVENT; type != YAML_STREAM_END_EVENT;) {
        yaml_event_t event;
        if (yaml_parser_parse(&parser, &event) == 0)
            throw Failure(fmt::format("line {}: {}", parser.problem_mark.line + 1,
                                      parser.problem != nullptr ? parser.problem : "is no YAML"));
        type = event.type;
        yaml_event_delete(&event);
        if (in_document && type != YAML_MAPPING_START_EVENT)
            throw Failure("is no YAML mapping: 'KEY: VALUE' lines");
        in_document = type == YAML_DOCUMENT_START_EVENT;
    }
}

/// JSON is YAML, too.
std::string config(const json::object& object) {
    return fmt::format("{}\n{}\n", config_header, json::serialize(object));
}

/// The contents of an option's file, as `parse` takes them.
template <typename Parse>
auto read_option(const char* option, const std::filesystem::path& file, Parse parse) {
    check_readable_file(option, file);
    return value_of(option, file.string(), [&](const std::string&) {
        const auto text = read_file(file);
        if (!text) throw Failure(std::generic_category().message(errno));
        return parse(*text);
    });
}

}  // namespace

std::vector<images::SeedFile> seed_files(const CloudInit& cloud_init) {
    json::object meta{{"instance-id", cloud_init.instance_id},
                      {"local-hostname", cloud_init.hostname}};
    if (!cloud_init.ssh_keys.empty()) meta["public-keys"] = json::value_from(cloud_init.ssh_keys);
    json::object vendor{{"disable_root", false}};
    if (!cloud_init.boot_command.empty())
        vendor["bootcmd"] = json::array{json::value_from(cloud_init.boot_command)};
    std::vector<images::SeedFile> files{
        {"meta-data", json::serialize(meta) + "\n"},
        {"user-data", cloud_init.user_data.empty() ? config({}) : cloud_init.user_data},
        {"vendor-data", config(vendor)}};
    if (!cloud_init.mac.empty()) {
        const json::object nic{{"match", json::object{{"macaddress", cloud_init.mac}}},
                               {"dhcp4", true},
                               {"dhcp-identifier", "mac"}};
        const json::object network{{"version", 2}, {"ethernets", json::object{{"nic0", nic}}}};
        files.push_back({"network-config", json::serialize(network) + "\n"});
    }
    return files;
}

void check_user_data(std::string_view text) {
    const auto begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos) throw Failure("is empty");
    constexpr std::size_t longest = 32;
    const auto first = lower(text.substr(begin, longest));
    if (first.starts_with(archive_header)) return;
    if (first.starts_with(config_header)) return check_yaml_mapping(text);
    if (std::none_of(other_headers.begin(), other_headers.end(),
                     [&](auto header) { return first.starts_with(header); }))
        throw Failure("does not begin as cloud-init's user data does",
                      "its first line is '#cloud-config', '#!/bin/sh', ...");
}

std::vector<std::string> parse_public_keys(std::string_view text) {
    if (text.find("PRIVATE KEY-----") != std::string_view::npos)
        throw Failure("is a private key", "the public one is in a file that ends in .pub");
    std::vector<std::string> keys;
    while (!text.empty()) {
        const auto end = std::min(text.find('\n'), text.size());
        auto line = text.substr(0, end);
        text.remove_prefix(std::min(end + 1, text.size()));
        while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back())) != 0)
            line.remove_suffix(1);
        if (line.empty() || line.front() == '#') continue;
        // Options may stand before it: sshd(8), AUTHORIZED_KEYS FILE FORMAT.
        if (line.find("ssh-") == std::string_view::npos &&
            line.find("ecdsa-") == std::string_view::npos)
            throw Failure("is no public key of OpenSSH's");
        keys.emplace_back(line);
    }
    if (keys.empty()) throw Failure("has no key");
    return keys;
}

std::string read_user_data(const std::filesystem::path& file) {
    return read_option("--user-data", file, [](const std::string& text) {
        check_user_data(text);
        return text;
    });
}

std::vector<std::string> read_public_keys(const std::filesystem::path& file) {
    return read_option("--ssh-key", file, parse_public_keys);
}

}  // namespace qvm
