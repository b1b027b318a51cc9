#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "images/transfer.h"

namespace qvm {

/// What is asked for.
struct HttpRequest {
    std::string url;            ///< http, https or file
    images::Partial partial{};  ///< what is there already; the rest is asked for, where that can be
    bool downgrade = false;     ///< an https URL may lead to one of http
};

/// Who takes the answer. What they throw ends the transfer, and is thrown again.
struct HttpReader {
    std::function<bool(const images::Answer&)>
        begin;                                   ///< before the contents: whether to take them
    std::function<void(std::string_view)> take;  ///< the contents, piece by piece
};

/// How a transfer ended.
struct HttpEnd {
    images::Answer answer{};
    std::string problem{};  ///< why it is not all there; empty: it is, or was not taken
    int code = 0;           ///< libcurl's (CURLcode) for that
};

/// Whether another attempt may help after one that ended with this CURLcode: where it broke off or
/// took too long; and where the server cannot be reached, if it has `answered` before. Pure.
bool is_passing_problem(int code, bool answered);

/// Gets a file by libcurl, which is loaded then; with the proxy of the environment (http_proxy and
/// so on) and the certificates that CURL_CA_BUNDLE, SSL_CERT_FILE or SSL_CERT_DIR name, as curl(1)
/// does. Redirects are followed, to http and https alone; a password in the URL is for its own
/// server alone. It is ended where nothing comes for half a minute. Blocks. Throws Failure where
/// there is no libcurl, and where a file of this host is no regular one.
HttpEnd http_get(const HttpRequest& request, const HttpReader& reader);

/// The file that libcurl is loaded from; empty where there is none.
std::string find_libcurl();

}  // namespace qvm
