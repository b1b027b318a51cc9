#pragma once

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launcher/failure.h"

namespace qvm {

/// Reads members of one object, which outlives it, and says which one is wrong, by a Failure. A
/// member that is null is one that is not there.
class JsonReader {
  public:
    explicit JsonReader(const boost::json::object& object) : object_(object) {}

    [[nodiscard]] bool has(const char* key) const { return find(key) != nullptr; }
    [[nodiscard]] std::optional<std::string> text(const char* key) const {
        const auto* value = find(key);
        if (value == nullptr) return std::nullopt;
        if (!value->is_string()) throw wrong(key, "a string");
        return std::string{value->get_string()};
    }
    [[nodiscard]] std::uint64_t number(const char* key, std::uint64_t otherwise) const {
        const auto* value = find(key);
        if (value == nullptr) return otherwise;
        boost::system::error_code error;
        const auto number = value->to_number<std::uint64_t>(error);
        if (error) throw wrong(key, "a whole number");
        return number;
    }
    [[nodiscard]] std::uint64_t number(const char* key, std::uint64_t otherwise,
                                       std::uint64_t largest) const {
        const auto value = number(key, otherwise);
        if (value < 1 || value > largest) throw wrong(key, fmt::format("1 to {}", largest));
        return value;
    }
    /// Of objects; what stands there must live as long as the object does.
    [[nodiscard]] std::vector<const boost::json::object*> objects(const char* key) const {
        std::vector<const boost::json::object*> result;
        const auto* value = find(key);
        if (value == nullptr) return result;
        if (!value->is_array()) throw wrong(key, "an array of objects");
        for (const auto& item : value->get_array()) {
            if (!item.is_object()) throw wrong(key, "an array of objects");
            result.push_back(&item.get_object());
        }
        return result;
    }
    [[nodiscard]] const boost::json::object& object(const char* key) const {
        const auto* value = find(key);
        if (value == nullptr || !value->is_object()) throw wrong(key, "an object");
        return value->get_object();
    }
    [[nodiscard]] bool flag(const char* key) const {
        const auto* value = find(key);
        if (value == nullptr) return false;
        if (!value->is_bool()) throw wrong(key, "true or false");
        return value->get_bool();
    }
    [[nodiscard]] std::vector<std::string> texts(const char* key) const {
        std::vector<std::string> result;
        const auto* value = find(key);
        if (value == nullptr) return result;
        if (!value->is_array()) throw wrong(key, "an array of strings");
        for (const auto& item : value->get_array()) {
            if (!item.is_string()) throw wrong(key, "an array of strings");
            result.emplace_back(item.get_string());
        }
        return result;
    }

  private:
    [[nodiscard]] const boost::json::value* find(const char* key) const {
        const auto* value = object_.if_contains(key);
        return value == nullptr || value->is_null() ? nullptr : value;
    }
    static Failure wrong(const char* key, std::string_view what) {
        return Failure(fmt::format("'{}' is not {}", key, what));
    }

    const boost::json::object& object_;
};

}  // namespace qvm
