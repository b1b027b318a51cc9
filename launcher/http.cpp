#include "launcher/http.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <link.h>
#include <sys/stat.h>

#include <array>
#include <cstdlib>
#include <exception>
#include <memory>

#include "images/url.h"
#include "launcher/failure.h"

namespace qvm {

namespace {

constexpr long connect_timeout = 30;  // seconds
constexpr long stall_time = 30;       // the same, at less than
constexpr long stall_speed = 100;     // bytes a second
constexpr long most_redirects = 10;

/// Loaded when it is needed: forty libraries come with it, which the start of every other command
/// would pay for (docs/decisions/images.md).
class LibCurl {
  public:
    LibCurl() {
        auto* library = open();
        if (library == nullptr)
            throw Failure(fmt::format("load libcurl: {}", ::dlerror()), "apt-get install libcurl4");
        load(library, "curl_global_init", global_init);
        load(library, "curl_easy_init", easy_init);
        load(library, "curl_easy_cleanup", easy_cleanup);
        load(library, "curl_easy_setopt", setopt);
        load(library, "curl_easy_getinfo", getinfo);
        load(library, "curl_easy_perform", perform);
        load(library, "curl_easy_strerror", strerror);
        load(library, "curl_easy_unescape", unescape);
        load(library, "curl_free", free);
        load(library, "curl_slist_append", slist_append);
        load(library, "curl_slist_free_all", slist_free_all);
        global_init(CURL_GLOBAL_DEFAULT);
    }

    static void* open() { return ::dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL); }

    decltype(&::curl_global_init) global_init = nullptr;
    decltype(&::curl_easy_init) easy_init = nullptr;
    decltype(&::curl_easy_cleanup) easy_cleanup = nullptr;
    decltype(&::curl_easy_setopt) setopt = nullptr;
    decltype(&::curl_easy_getinfo) getinfo = nullptr;
    decltype(&::curl_easy_perform) perform = nullptr;
    decltype(&::curl_easy_strerror) strerror = nullptr;
    decltype(&::curl_easy_unescape) unescape = nullptr;
    decltype(&::curl_free) free = nullptr;
    decltype(&::curl_slist_append) slist_append = nullptr;
    decltype(&::curl_slist_free_all) slist_free_all = nullptr;

  private:
    template <typename Function>
    static void load(void* library, const char* name, Function& function) {
        function = reinterpret_cast<Function>(::dlsym(library, name));
        if (function == nullptr) throw Failure(fmt::format("load libcurl: {}", ::dlerror()));
    }
};

const LibCurl& libcurl() {
    static const LibCurl library;
    return library;
}

const char* from_environment(std::initializer_list<const char*> variables) {
    for (const char* variable : variables)
        if (const char* value = std::getenv(variable); value != nullptr && *value != '\0')
            return value;
    return nullptr;
}

/// One transfer; libcurl's callbacks have it as their user data.
class Transfer {
  public:
    Transfer(const HttpRequest& request, const HttpReader& reader)
        : reader_(reader), handle_(curl_.easy_init(), curl_.easy_cleanup) {
        if (!handle_) throw Failure("start libcurl: out of memory");
        if (images::has_scheme(request.url, "file")) check_file(request.url);
        const bool secure = images::has_scheme(request.url, "https");
        set(CURLOPT_URL, request.url.c_str());
        set(CURLOPT_USERAGENT, "qvm/" QVM_VERSION);
        set(CURLOPT_NOSIGNAL, 1L);
        set(CURLOPT_FOLLOWLOCATION, 1L);
        set(CURLOPT_MAXREDIRS, most_redirects);
        set(CURLOPT_PROTOCOLS_STR, "http,https,file");
        set(CURLOPT_REDIR_PROTOCOLS_STR, secure && !request.downgrade ? "https" : "http,https");
        set(CURLOPT_CONNECTTIMEOUT, connect_timeout);
        set(CURLOPT_LOW_SPEED_TIME, stall_time);
        set(CURLOPT_LOW_SPEED_LIMIT, stall_speed);
        if (const char* file = from_environment({"CURL_CA_BUNDLE", "SSL_CERT_FILE"}))
            set(CURLOPT_CAINFO, file);
        if (const char* directory = from_environment({"SSL_CERT_DIR"}))
            set(CURLOPT_CAPATH, directory);
        set(CURLOPT_ERRORBUFFER, problem_.data());
        set(CURLOPT_HEADERFUNCTION, &Transfer::on_header);
        set(CURLOPT_HEADERDATA, this);
        set(CURLOPT_WRITEFUNCTION, &Transfer::on_contents);
        set(CURLOPT_WRITEDATA, this);
        if (images::can_go_on(request.partial)) ask_for_rest(request.partial);
    }

    HttpEnd operator()() {
        const auto code = curl_.perform(handle_.get());
        if (failure_) std::rethrow_exception(failure_);
        HttpEnd end;
        if (code == CURLE_OK) begin();  // there may be no contents
        if (failure_) std::rethrow_exception(failure_);
        end.answer = answer_;
        end.code = code;
        if (code != CURLE_OK && wanted_)
            end.problem = problem_.front() != '\0' ? problem_.data() : curl_.strerror(code);
        if (long redirects = 0;
            code == CURLE_UNSUPPORTED_PROTOCOL &&
            curl_.getinfo(handle_.get(), CURLINFO_REDIRECT_COUNT, &redirects) == CURLE_OK &&
            redirects > 0)
            end.problem = describe_redirect();
        return end;
    }

  private:
    template <typename Value>
    void set(CURLoption option, Value value) {
        if (const auto code = curl_.setopt(handle_.get(), option, value); code != CURLE_OK)
            throw Failure(fmt::format("start libcurl: {}", curl_.strerror(code)));
    }

    /// libcurl would wait for who writes to a pipe, and read a device for ever.
    void check_file(const std::string& url) const {
        constexpr std::size_t prefix = std::string_view{"file://"}.size();
        const auto escaped = url.substr(prefix, url.find_first_of("?#") - prefix);
        const std::unique_ptr<char, decltype(LibCurl::free)> path{
            curl_.unescape(handle_.get(), escaped.c_str(), 0, nullptr), curl_.free};
        struct stat status {};
        if (path && ::stat(path.get(), &status) == 0 && !S_ISREG(status.st_mode))
            throw Failure(fmt::format("{}: is {}", images::without_secrets(url),
                                      S_ISDIR(status.st_mode) ? "a directory" : "no regular file"));
    }

    /// Where to, and why it is not followed.
    std::string describe_redirect() const {
        const char* target = "";
        curl_.getinfo(handle_.get(), CURLINFO_EFFECTIVE_URL, &target);
        return fmt::format(
            "is redirected to '{}': {}", images::without_secrets(target),
            images::has_scheme(target, "http")
                ? "from https to http only with a checksum that came by https, or by hand"
                : "only http and https are followed");
    }

    /// By headers of our own: libcurl's own option takes an answer that is the whole file for an
    /// error.
    void ask_for_rest(const images::Partial& partial) {
        for (const auto& line :
             {fmt::format("Range: bytes={}-", partial.size), "If-Range: " + partial.validator})
            if (auto* longer = curl_.slist_append(headers_.get(), line.c_str())) {
                (void)headers_.release();
                headers_.reset(longer);
            }
        set(CURLOPT_HTTPHEADER, headers_.get());
    }

    /// Whether the contents are taken.
    bool begin() noexcept {
        if (begun_) return wanted_;
        begun_ = true;
        curl_off_t length = -1;
        curl_.getinfo(handle_.get(), CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
        if (!answer_.length && length >= 0) answer_.length = static_cast<std::uint64_t>(length);
        try {
            wanted_ = reader_.begin(answer_);
        } catch (...) {
            failure_ = std::current_exception();
            wanted_ = false;
        }
        return wanted_;
    }

    static std::size_t on_header(const char* text, std::size_t, std::size_t size,
                                 Transfer* self) noexcept {
        images::read_header(self->answer_, {text, size});
        return size;
    }

    static std::size_t on_contents(const char* bytes, std::size_t, std::size_t size,
                                   Transfer* self) noexcept {
        if (!self->begin()) return 0;
        try {
            self->reader_.take({bytes, size});
            return size;
        } catch (...) {
            self->failure_ = std::current_exception();
            return 0;
        }
    }

    const HttpReader& reader_;
    const LibCurl& curl_ = libcurl();
    std::unique_ptr<CURL, decltype(LibCurl::easy_cleanup)> handle_;
    std::unique_ptr<curl_slist, decltype(LibCurl::slist_free_all)> headers_{nullptr,
                                                                            curl_.slist_free_all};
    std::array<char, CURL_ERROR_SIZE> problem_{};
    images::Answer answer_;
    bool begun_ = false;
    bool wanted_ = true;
    std::exception_ptr failure_;
};

}  // namespace

bool is_passing_problem(int code, bool answered) {
    switch (code) {
        case CURLE_GOT_NOTHING:
        case CURLE_HTTP2:
        case CURLE_HTTP2_STREAM:
        case CURLE_OPERATION_TIMEDOUT:
        case CURLE_PARTIAL_FILE:
        case CURLE_RECV_ERROR:
        case CURLE_SEND_ERROR:
            return true;
        case CURLE_COULDNT_CONNECT:
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_RESOLVE_PROXY:
        case CURLE_SSL_CONNECT_ERROR:
            return answered;
        default:
            return false;
    }
}

HttpEnd http_get(const HttpRequest& request, const HttpReader& reader) {
    return Transfer{request, reader}();
}

std::string find_libcurl() {
    auto* library = LibCurl::open();
    link_map* map = nullptr;
    if (library == nullptr || ::dlinfo(library, RTLD_DI_LINKMAP, static_cast<void*>(&map)) != 0)
        return {};
    return map->l_name;
}

}  // namespace qvm
