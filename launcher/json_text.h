#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <string>

namespace qvm {

/// JSON for people: indented by two, a member a line, without a final newline. Pure.
std::string pretty(const boost::json::value& value, std::size_t indentation = 0);

/// A member that is a string or a whole number, of what another program says; empty and 0 where
/// there is none. Pure.
std::string text_in(const boost::json::object& object, const char* key);
std::string text_in(const boost::json::value& value, const char* key);
std::int64_t number_in(const boost::json::object& object, const char* key);
std::int64_t number_in(const boost::json::value& value, const char* key);

/// The object that a text is. Throws Failure ("is not a JSON object"). Pure.
boost::json::object parse_object(const std::string& text);

}  // namespace qvm
