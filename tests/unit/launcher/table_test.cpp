#include "launcher/table.h"

#include <time.h>

#include <boost/json.hpp>
#include <catch2/catch.hpp>

#include "launcher/json_text.h"

using namespace qvm;

TEST_CASE("columns line up, whatever the text, and no line ends in blanks") {
    CHECK(to_table({{"NAME", "STATE"}, {"web", "running"}, {"a-long-name", ""}}) ==
          "NAME         STATE\n"
          "web          running\n"
          "a-long-name\n");
    CHECK(to_table({{"\xc3\xa9t\xc3\xa9", "x"}, {"abcd", "y"}}) ==
          "\xc3\xa9t\xc3\xa9   x\nabcd  y\n");
    CHECK(to_table({{"NAME", "STATE"}, {"web", "running"}}, true) ==
          "\x1b[1mNAME  STATE\x1b[0m\nweb   running\n");
    CHECK(to_table({{"NAME", "IMAGE"}, {"web", "\x1b[2J"}}) == "NAME  IMAGE\nweb   ?[2J\n");
    CHECK(to_table({}).empty());
}

TEST_CASE("time in words") {
    CHECK(in_words(-5) == "less than a second");
    CHECK(in_words(0) == "less than a second");
    CHECK(in_words(1) == "1 second");
    CHECK(in_words(119) == "119 seconds");
    CHECK(in_words(120) == "2 minutes");
    CHECK(in_words(3600) == "60 minutes");
    CHECK(in_words(7200) == "2 hours");
    CHECK(in_words(86400 * 3) == "3 days");
    CHECK(age_of("1970-01-01T00:00:00Z").ends_with(" days"));
    CHECK(age_of("yesterday").empty());
    CHECK(age_of("").empty());
}

TEST_CASE("JSON for people") {
    const auto value = boost::json::parse(R"({"a":[1,{"b":null}],"c":{},"d":[],"e":"x\"y"})");
    CHECK(pretty(value) == R"({
  "a": [
    1,
    {
      "b": null
    }
  ],
  "c": {},
  "d": [],
  "e": "x\"y"
})");
    CHECK(boost::json::parse(pretty(value)) == value);
    CHECK(pretty(31.612) == "31.612");
}
