#include "launcher/base64.h"

#include <boost/archive/iterators/base64_from_binary.hpp>
#include <boost/archive/iterators/binary_from_base64.hpp>
#include <boost/archive/iterators/dataflow_exception.hpp>
#include <boost/archive/iterators/transform_width.hpp>

#include "launcher/failure.h"

namespace qvm {

namespace iterators = boost::archive::iterators;

std::string to_base64(std::string_view bytes) {
    using Encoder =
        iterators::base64_from_binary<iterators::transform_width<std::string_view::iterator, 6, 8>>;
    std::string text{Encoder{bytes.begin()}, Encoder{bytes.end()}};
    text.append((4 - text.size() % 4) % 4, '=');
    return text;
}

std::string from_base64(std::string_view text) {
    using Decoder =
        iterators::transform_width<iterators::binary_from_base64<std::string::iterator>, 8, 6>;
    std::string padded{text};
    std::size_t padding = 0;
    for (; padding < 2 && padding < padded.size() && padded[padded.size() - 1 - padding] == '=';
         ++padding)
        padded[padded.size() - 1 - padding] = 'A';
    if (padded.size() % 4 != 0 || padded.find('=') != std::string::npos)
        throw Failure("is not base64");
    try {
        std::string bytes{Decoder{padded.begin()}, Decoder{padded.end()}};
        bytes.resize(padded.size() / 4 * 3 - padding);
        return bytes;
    } catch (const iterators::dataflow_exception&) {
        throw Failure("is not base64");
    }
}

}  // namespace qvm
