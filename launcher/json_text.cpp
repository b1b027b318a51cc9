#include "launcher/json_text.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>

#include "launcher/failure.h"

namespace qvm {

namespace json = boost::json;

namespace {

constexpr std::size_t step = 2;

template <typename Items, typename Text>
std::string lines_of(const Items& items, char open, char close, std::size_t indentation,
                     Text text) {
    if (items.empty()) return {open, close};
    std::string result{open};
    bool first = true;
    for (const auto& item : items) {
        result += first ? "\n" : ",\n";
        first = false;
        result += std::string(indentation + step, ' ') + text(item);
    }
    return result + '\n' + std::string(indentation, ' ') + close;
}

}  // namespace

std::string pretty(const json::value& value, std::size_t indentation) {
    if (const auto* object = value.if_object())
        return lines_of(*object, '{', '}', indentation, [&](const auto& member) {
            return json::serialize(json::string{member.key()}) + ": " +
                   pretty(member.value(), indentation + step);
        });
    if (const auto* array = value.if_array())
        return lines_of(*array, '[', ']', indentation,
                        [&](const auto& item) { return pretty(item, indentation + step); });
    // Boost's would be 3.1612E1.
    if (const auto* number = value.if_double(); number != nullptr && std::isfinite(*number))
        return fmt::format("{}", *number);
    return json::serialize(value);
}

std::string text_in(const json::object& object, const char* key) {
    const auto* member = object.if_contains(key);
    return member != nullptr && member->is_string() ? std::string{member->get_string()} : "";
}

std::string text_in(const json::value& value, const char* key) {
    return value.is_object() ? text_in(value.get_object(), key) : "";
}

std::int64_t number_in(const json::object& object, const char* key) {
    const auto* member = object.if_contains(key);
    return member != nullptr && member->is_int64() ? member->get_int64() : 0;
}

std::int64_t number_in(const json::value& value, const char* key) {
    return value.is_object() ? number_in(value.get_object(), key) : 0;
}

json::object parse_object(const std::string& text) {
    boost::system::error_code error;
    auto value = json::parse(text, error);
    if (error || !value.is_object()) throw Failure("is not a JSON object");
    return std::move(value.get_object());
}

}  // namespace qvm
