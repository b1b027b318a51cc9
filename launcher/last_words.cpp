#include "launcher/last_words.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <system_error>

#include "launcher/step.h"

namespace qvm {

namespace asio = boost::asio;

void LastWords::open() {
    std::array<int, 2> ends;
    if (::pipe2(ends.data(), O_CLOEXEC) != 0)
        throw boost::system::system_error{errno, boost::system::generic_category()};
    write_end_.reset(ends[1]);
    UniqueFd read_end{ends[0]};
    pipe_.assign(read_end.get());
    (void)read_end.release();
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
    in_step(fmt::format("start '{}': watch its stderr", spec.argv.at(0)), [&] { words.open(); });
    spec.stderr_fd = words.write_end();
    child = Child::spawn(spec);
    words.close_write_end();
}

}  // namespace qvm
