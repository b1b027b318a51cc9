#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace qvm::images {

/// What the checksums of images are made by.
enum class HashKind { sha256, sha512 };

/// A checksum as distributions give it.
struct Checksum {
    HashKind kind = HashKind::sha256;
    std::string hex{};  ///< lower case

    bool operator==(const Checksum&) const = default;
};

/// Reads "sha256:HEX" or "sha512:HEX". Throws Error. Pure.
Checksum parse_checksum(std::string_view text);
std::string to_string(const Checksum& checksum);

/// SHA-256 or SHA-512 (FIPS 180-4) of what it is given, piece by piece.
class Hash {
  public:
    explicit Hash(HashKind kind);
    Hash(Hash&&) noexcept;
    Hash& operator=(Hash&&) noexcept;
    ~Hash();

    void update(const void* bytes, std::size_t size);
    /// Of all so far; it begins anew then.
    Checksum finish();

  private:
    struct State;
    HashKind kind_;
    std::unique_ptr<State> state_;
};

/// The SHA-256 of a text, in hexadecimal. Pure.
std::string checksum(std::string_view text);

}  // namespace qvm::images
