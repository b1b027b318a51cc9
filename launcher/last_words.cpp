#include "launcher/last_words.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <system_error>

#include "launcher/failure.h"

namespace qvm {

namespace asio = boost::asio;

LastWords::LastWords(const asio::any_io_executor& executor) : pipe_(executor) {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        throw Failure("make a pipe: " + std::generic_category().message(errno));
    pipe_.assign(ends[0]);
    write_end_.reset(ends[1]);
}

asio::awaitable<void> LastWords::collect(Report debug) {
    std::array<char, 1024> buffer;
    for (;;) {
        const auto [error, size] = co_await pipe_.async_read_some(
            asio::buffer(buffer), asio::as_tuple(asio::use_awaitable));
        if (error) co_return;
        const std::string_view bytes{buffer.data(), size};
        lines_.feed(bytes);
        debug(std::string{bytes.substr(0, bytes.find_last_not_of('\n') + 1)});
    }
}

std::string LastWords::text_or(const std::string& otherwise) const {
    if (!lines_.open().empty()) return lines_.open();
    return lines_.ended().empty() ? otherwise : lines_.ended();
}

void Process::start(SpawnSpec spec) {
    spec.stderr_fd = words.write_end();
    child = Child::spawn(spec);
    words.close_write_end();
}

}  // namespace qvm
