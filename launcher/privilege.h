#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/last_words.h"

/// What a user without privilege needs to make networks: a user namespace in which this process is
/// root.
namespace qvm {

/// Subordinate ids of a user; see subuid(5).
struct IdRange {
    std::uint64_t first = 0;
    std::uint64_t count = 0;

    bool operator==(const IdRange&) const = default;
};

/// What getsubids(1) prints. Pure.
std::vector<IdRange> parse_id_ranges(std::string_view text);

/// The arguments of newuidmap(1) after the process: `own`, an id of ours, is root inside, and the
/// ranges follow it. Pure.
std::string id_map(std::uint64_t own, const std::vector<IdRange>& ranges);

/// Puts this process, which must have one thread, into a user namespace: a new one, with the user's
/// subordinate ids where newuidmap(1) maps them, or that of `network_namespace` (a descriptor,
/// borrowed; -1: none). Throws Failure.
void enter_user_namespace(int network_namespace, const Report& debug);

}  // namespace qvm
