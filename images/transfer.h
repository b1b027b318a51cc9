#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Downloads by HTTP (RFC 9110) that go on where they were broken off: what is asked for, and what
/// the answer means. Pure.
namespace qvm::images {

/// What is there of a file by now.
struct Partial {
    std::uint64_t size = 0;   ///< bytes
    std::string validator{};  ///< of the file that they are of, for If-Range; empty: not known

    bool operator==(const Partial&) const = default;
};

/// Whether the rest alone can be asked for.
bool can_go_on(const Partial& partial);

/// What a server says before the contents.
struct Answer {
    int status = 0;  ///< HTTP's; 0: a file of this host
    std::string etag{};
    std::string last_modified{};
    std::string content_range{};
    std::optional<std::uint64_t> length{};  ///< bytes of the contents to come
};

/// Takes one header line ("ETag: ..."), with its end or without; the status line of another answer,
/// to which a redirection led, begins anew.
void read_header(Answer& answer, std::string_view line);

/// What If-Range can know the file by again: its ETag, unless it is a weak one, else the time of
/// its last change; empty where there is neither, and of a file of this host.
std::string validator_of(const Answer& answer);

/// What to do with the contents.
struct Verdict {
    enum class Kind {
        begin,    ///< they are the whole file
        append,   ///< they are the rest of it
        whole,    ///< there are none: what is there is all of it
        restart,  ///< they are of no use: ask for the whole file
        refused
    };
    Kind kind = Kind::refused;
    std::optional<std::uint64_t> size{};  ///< bytes of the whole file, if the server says so
};
Verdict judge(const Partial& partial, const Answer& answer);

/// Whether a server that answers so may answer otherwise in a while.
bool is_passing(int status);

/// "HTTP status 404 (Not Found)"
std::string describe_status(int status);

}  // namespace qvm::images
