#pragma once

#include <vector>

#include "images/catalogue.h"

namespace qvm {

/// All images that have a name to be pulled by: those that qvm comes with, then those of
/// /etc/qvm/images.json, of the user's qvm/images.json ($XDG_CONFIG_HOME, ~/.config), and of
/// QVM_CATALOGUE. The last of a name is the one that counts. Throws Failure.
std::vector<images::CatalogueEntry> read_catalogues();

/// The architecture of this host, as uname(1) calls it.
std::string own_architecture();

}  // namespace qvm
