#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>

namespace qvm {

/// JSON for people: indented by two, a member a line, without a final newline. Pure.
std::string pretty(const boost::json::value& value, std::size_t indentation = 0);

/// The object that a text is. Throws Failure ("is not a JSON object"). Pure.
boost::json::object parse_object(const std::string& text);

}  // namespace qvm
