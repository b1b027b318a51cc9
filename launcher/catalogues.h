#pragma once

#include <optional>
#include <string>
#include <vector>

#include "images/catalogue.h"
#include "launcher/values.h"

namespace qvm {

/// All images that have a name to be pulled by: those that qvm comes with, then those of
/// /etc/qvm/images.json, of the user's qvm/images.json ($XDG_CONFIG_HOME, ~/.config), and of
/// QVM_CATALOGUE, with keyrings by their full paths. The last of a name is the one that counts.
/// Throws Failure.
std::vector<images::CatalogueEntry> read_catalogues();

/// The last of those of that name and architecture; nothing where there is none. Throws Failure.
std::optional<images::CatalogueEntry> find_in_catalogues(const std::string& name,
                                                         Architecture architecture);

/// What such an image is called in the store: one of another architecture than the host's has it in
/// its name, "debian:12-aarch64". Pure.
std::string stored_name(const std::string& name, Architecture architecture, Architecture host);

}  // namespace qvm
