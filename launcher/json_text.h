#pragma once

#include <boost/json/value.hpp>
#include <string>

namespace qvm {

/// JSON for people: indented by two, a member a line, without a final newline. Pure.
std::string pretty(const boost::json::value& value, std::size_t indentation = 0);

}  // namespace qvm
