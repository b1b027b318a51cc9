#include "images/transfer.h"

#include <catch2/catch.hpp>

using namespace qvm::images;
using Kind = Verdict::Kind;

namespace {

Answer answer_of(std::initializer_list<const char*> lines) {
    Answer answer;
    for (const auto* line : lines) read_header(answer, line);
    return answer;
}

}  // namespace

TEST_CASE("headers, in whatever case; a redirect's are forgotten") {
    const auto answer = answer_of(
        {"HTTP/1.1 302 Found\r\n", "ETag: \"old\"\r\n", "Location: /x\r\n", "\r\n",
         "HTTP/2 206 \r\n", "etag:\"new\"\r\n", "LAST-MODIFIED: Mon, 02 Mar 2026 10:00:00 GMT\r\n",
         "Content-Range: bytes 5-9/10\r\n", "content-length: 5\r\n", "X: y", "nonsense", ""});
    CHECK(answer.status == 206);
    CHECK(answer.etag == "\"new\"");
    CHECK(answer.last_modified == "Mon, 02 Mar 2026 10:00:00 GMT");
    CHECK(answer.content_range == "bytes 5-9/10");
    CHECK(answer.length == 5U);
    CHECK(answer_of({"HTTP/1.1", "Content-Length: 5x"}).status == 0);
    CHECK(!answer_of({"HTTP/1.1 200 OK", "Content-Length: -1"}).length);
}

TEST_CASE("what a file is known by again") {
    CHECK(validator_of({.status = 200, .etag = "\"a\"", .last_modified = "Mon"}) == "\"a\"");
    CHECK(validator_of({.status = 200, .etag = "W/\"a\"", .last_modified = "Mon"}) == "Mon");
    CHECK(validator_of({.status = 200, .etag = "W/\"a\""}).empty());
    CHECK(validator_of({.status = 0, .last_modified = "Mon"}).empty());
    CHECK(can_go_on({5, "\"a\""}));
    CHECK(!can_go_on({0, "\"a\""}));
    CHECK(!can_go_on({5, ""}));
}

TEST_CASE("what an answer means") {
    const Partial partial{5, "\"a\""};
    const auto judged = [&](int status, const char* range) {
        const auto verdict = judge(partial, {.status = status, .content_range = range});
        return std::pair{verdict.kind, verdict.size.value_or(0)};
    };
    using Verdicts = std::pair<Kind, std::uint64_t>;
    CHECK(judge(partial, {.status = 200, .length = 10}).kind == Kind::begin);
    CHECK(judge(partial, {.status = 200, .length = 10}).size == 10U);
    CHECK(judge(partial, {.status = 0}).kind == Kind::begin);
    CHECK(judged(206, "bytes 5-9/10") == Verdicts{Kind::append, 10});
    CHECK(judged(206, "bytes 5-9/*") == Verdicts{Kind::append, 0});
    CHECK(judged(206, "bytes 4-9/10").first == Kind::restart);
    CHECK(judged(206, "").first == Kind::restart);
    CHECK(judged(206, "lines 5-9/10").first == Kind::restart);
    CHECK(judge({5, ""}, {.status = 206, .content_range = "bytes 5-9/10"}).kind == Kind::restart);
    CHECK(judged(416, "bytes */5") == Verdicts{Kind::whole, 5});
    CHECK(judged(416, "bytes */4").first == Kind::restart);
    CHECK(judged(416, "").first == Kind::restart);
    for (const int status : {100, 201, 204, 304, 400, 401, 403, 404, 408, 410, 501, 503})
        CHECK(judged(status, "").first == Kind::refused);
}

TEST_CASE("servers that may answer in a while") {
    for (const int status : {408, 429, 500, 502, 503, 504, 522}) CHECK(is_passing(status));
    for (const int status : {0, 200, 206, 304, 400, 401, 403, 404, 410, 416, 501, 505})
        CHECK(!is_passing(status));
}

TEST_CASE("a status in words") {
    CHECK(describe_status(404) == "HTTP status 404 (Not Found)");
    CHECK(describe_status(418) == "HTTP status 418");
}
