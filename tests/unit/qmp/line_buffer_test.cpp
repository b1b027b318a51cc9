#include "qmp/line_buffer.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

using qvm::qmp::LineBuffer;

namespace {

std::vector<std::string> drain(LineBuffer& buffer) {
    std::vector<std::string> lines;
    while (const auto line = buffer.next()) lines.emplace_back(*line);
    return lines;
}

}  // namespace

TEST_CASE("lines come out whole wherever the input is cut") {
    const std::string text = "one\n\ntwo\r\nthree";
    for (std::size_t first = 0; first <= text.size(); ++first)
        for (std::size_t second = first; second <= text.size(); ++second) {
            LineBuffer buffer(100);
            std::vector<std::string> lines;
            for (const auto& part : {text.substr(0, first), text.substr(first, second - first),
                                     text.substr(second), std::string("\n")}) {
                buffer.append(part);
                for (auto& line : drain(buffer)) lines.push_back(line);
            }
            CHECK(lines == std::vector<std::string>{"one", "", "two\r", "three"});
        }
}

TEST_CASE("a line of exactly the cap passes") {
    LineBuffer buffer(4);
    buffer.append("1234\n1234");
    CHECK(drain(buffer) == std::vector<std::string>{"1234"});
    CHECK_FALSE(buffer.too_long());
    buffer.append("\n");
    CHECK(drain(buffer) == std::vector<std::string>{"1234"});
}

TEST_CASE("a line above the cap stops the buffer, finished or not") {
    const std::string end = GENERATE("", "\n", "\nnext\n");
    LineBuffer buffer(4);
    buffer.append("ok\n12345" + end);
    CHECK(drain(buffer) == std::vector<std::string>{"ok"});
    CHECK(buffer.too_long());
    buffer.append("\nmore\n");
    CHECK(drain(buffer).empty());
    CHECK(buffer.too_long());
}

TEST_CASE("a long line in small parts is not scanned again and again") {
    LineBuffer buffer(qvm::qmp::default_max_line);
    std::size_t lines = 0;
    for (int i = 0; i < 1 << 19; ++i) {  // quadratic, this would be 2^42 steps
        buffer.append("0123456789abcdef");
        lines += drain(buffer).size();
    }
    buffer.append("\n");
    CHECK(lines == 0);
    REQUIRE(drain(buffer).size() == 1);
}

TEST_CASE("full when more than the longest line waits") {
    LineBuffer buffer(4);
    buffer.append("1\n23");
    CHECK_FALSE(buffer.full());
    buffer.append("\n");
    CHECK(buffer.full());
    CHECK(buffer.next() == "1");
    CHECK_FALSE(buffer.full());
}
