#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "images/seed.h"

/// What the guest's cloud-init is told, as its NoCloud datasource reads it.
namespace qvm {

struct CloudInit {
    std::string instance_id;  ///< another one, and cloud-init sets the guest up anew
    std::string hostname;
    std::string mac{};                    ///< of the NIC that gets an address by DHCP; empty: none
    std::vector<std::string> ssh_keys{};  ///< public, for root and the guest's default user
    std::vector<std::string> boot_command{};  ///< is run early in each boot; may be empty
    std::string user_data{};                  ///< the user's own, byte for byte; may be empty
};

/// The seed's files. Ours are meta-data and vendor-data, which the user's data goes on top of
/// key by key (cloud-init's documentation, "Vendor data"). Pure.
std::vector<images::SeedFile> seed_files(const CloudInit& cloud_init);

/// Throws Failure, with a reason alone, where cloud-init would not take this for user data, or it
/// is a cloud-config that is no YAML mapping. Pure.
void check_user_data(std::string_view text);

/// The keys of a file as authorized_keys has them, of which at least one. Throws Failure, with a
/// reason alone. Pure.
std::vector<std::string> parse_public_keys(std::string_view text);

/// The checked text of --user-data, and the keys of --ssh-key. Throw Failure with the option.
std::string read_user_data(const std::filesystem::path& file);
std::vector<std::string> read_public_keys(const std::filesystem::path& file);

}  // namespace qvm
