#include "images/hash.h"

#include <nettle/sha2.h>

#include <array>
#include <span>

#include "images/error.h"

namespace qvm::images {

namespace {

constexpr std::string_view digits = "0123456789abcdef";

std::string to_hex(std::span<const std::uint8_t> bytes) {
    std::string text;
    for (const auto byte : bytes) text += {digits[byte >> 4], digits[byte & 15]};
    return text;
}

}  // namespace

struct Hash::State {
    sha256_ctx sha256;
    sha512_ctx sha512;
};

Hash::Hash(HashKind kind) : kind_(kind), state_(std::make_unique<State>()) {
    ::nettle_sha256_init(&state_->sha256);
    ::nettle_sha512_init(&state_->sha512);
}

Hash::Hash(Hash&&) noexcept = default;
Hash& Hash::operator=(Hash&&) noexcept = default;
Hash::~Hash() = default;

void Hash::update(const void* bytes, std::size_t size) {
    const auto* begin = static_cast<const std::uint8_t*>(bytes);
    if (kind_ == HashKind::sha256)
        ::nettle_sha256_update(&state_->sha256, size, begin);
    else
        ::nettle_sha512_update(&state_->sha512, size, begin);
}

Checksum Hash::finish() {
    std::array<std::uint8_t, SHA512_DIGEST_SIZE> digest{};
    if (kind_ == HashKind::sha256) {
        ::nettle_sha256_digest(&state_->sha256, SHA256_DIGEST_SIZE, digest.data());
        return {kind_, to_hex(std::span{digest}.first(SHA256_DIGEST_SIZE))};
    }
    ::nettle_sha512_digest(&state_->sha512, digest.size(), digest.data());
    return {kind_, to_hex(digest)};
}

std::string checksum(std::string_view text) {
    Hash hash{HashKind::sha256};
    hash.update(text.data(), text.size());
    return hash.finish().hex;
}

Checksum parse_checksum(std::string_view text) {
    constexpr std::size_t prefix = std::string_view{"sha256:"}.size();
    Checksum checksum;
    if (text.starts_with("sha512:"))
        checksum.kind = HashKind::sha512;
    else if (!text.starts_with("sha256:"))
        throw Error("is not sha256:HEX or sha512:HEX");
    checksum.hex = text.substr(prefix);
    for (auto& digit : checksum.hex)
        if (digit >= 'A' && digit <= 'F') digit = static_cast<char>(digit - 'A' + 'a');
    const std::size_t length = checksum.kind == HashKind::sha256 ? 64 : 128;
    if (checksum.hex.size() != length ||
        checksum.hex.find_first_not_of(digits) != std::string::npos)
        throw Error("has not " + std::to_string(length) + " hexadecimal digits");
    return checksum;
}

std::string to_string(const Checksum& checksum) {
    return (checksum.kind == HashKind::sha256 ? "sha256:" : "sha512:") + checksum.hex;
}

}  // namespace qvm::images
