#include "launcher/http.h"

#include <curl/curl.h>

#include <catch2/catch.hpp>

using namespace qvm;

TEST_CASE("what is tried again") {
    for (const int code : {CURLE_PARTIAL_FILE, CURLE_RECV_ERROR, CURLE_SEND_ERROR,
                           CURLE_GOT_NOTHING, CURLE_OPERATION_TIMEDOUT, CURLE_HTTP2_STREAM}) {
        CHECK(is_passing_problem(code, false));
        CHECK(is_passing_problem(code, true));
    }
    // Of a server that was there a moment ago.
    for (const int code : {CURLE_COULDNT_CONNECT, CURLE_COULDNT_RESOLVE_HOST}) {
        CHECK(!is_passing_problem(code, false));
        CHECK(is_passing_problem(code, true));
    }
    for (const int code :
         {CURLE_PEER_FAILED_VERIFICATION, CURLE_TOO_MANY_REDIRECTS, CURLE_UNSUPPORTED_PROTOCOL,
          CURLE_FILE_COULDNT_READ_FILE, CURLE_URL_MALFORMAT, CURLE_WRITE_ERROR}) {
        CHECK(!is_passing_problem(code, false));
        CHECK(!is_passing_problem(code, true));
    }
}
