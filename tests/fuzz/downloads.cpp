// What servers send before an image: headers, a list of checksums, and a catalogue that came from
// somewhere.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "images/catalogue.h"
#include "images/checksum_file.h"
#include "images/error.h"
#include "images/signature.h"
#include "images/transfer.h"
#include "images/url.h"

namespace {

using namespace qvm::images;

/// A file is only added to where the server says that it goes on there.
void read_headers(std::string_view text) {
    Answer answer;
    for (std::size_t begin = 0; begin < text.size();) {
        const auto end = text.find('\n', begin);
        read_header(answer, text.substr(begin, end - begin));
        begin = end == std::string_view::npos ? text.size() : end + 1;
    }
    const Partial partial{10, "\"a\""};
    const auto verdict = judge(partial, answer);
    if (verdict.kind == Verdict::Kind::append &&
        answer.content_range.find("bytes 10") == std::string::npos &&
        answer.content_range.find("bytes 0") == std::string::npos)
        __builtin_trap();
    (void)can_go_on({10, validator_of(answer)});
    (void)describe_status(answer.status);
    (void)problem_of_signature(text);
    (void)without_secrets(text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    read_headers(text);
    if (!is_image_name(image_name_of(file_name_of(text)))) __builtin_trap();
    try {
        if (const auto found = find_checksum(text, "disk.img"))
            if (parse_checksum(to_string(*found)) != *found) __builtin_trap();
        (void)only_checksum(text);
    } catch (const Error&) {
    }
    try {
        for (const auto& entry : parse_catalogue(text))
            if (!is_image_name(entry.name) || !is_url(entry.url)) __builtin_trap();
    } catch (const Error&) {
    }
    return 0;
}
