// The server's side of QMP against any input: nothing crashes, every line is answered at most once
// and by what a client can read, and what comes out does not depend on how the input is cut.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>

#include "qmp/server_protocol.h"

using namespace qvm::qmp;

namespace {

constexpr std::size_t max_line = 512;

void require(bool condition) {
    if (!condition) std::abort();
}

std::size_t count_lines(std::string_view text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

// Half of the commands succeed, and each is an event as well.
void carry_out(ServerProtocol& protocol, const Request& request) {
    protocol.event({request.command, request.arguments});
    if (request.command.size() % 2 == 0)
        protocol.reply(request.id, request.arguments);
    else
        protocol.refuse(request.id, request.command, request.command);
}

std::string answers(ServerProtocol& protocol) {
    std::string all;
    for (;;) {
        while (const auto request = protocol.next_request()) carry_out(protocol, *request);
        const auto output = protocol.take_output();
        if (output.empty()) return all;
        all += output;
    }
}

std::string play(bool ready, std::string_view input, std::size_t step) {
    ServerProtocol protocol({}, max_line);
    if (ready) protocol.feed("{\"execute\":\"qmp_capabilities\"}\n");
    auto output = answers(protocol);
    require(protocol.state() == (ready ? ServerState::ready : ServerState::negotiating));
    for (std::size_t at = 0; at < input.size() && protocol.wants_input(); at += step) {
        protocol.feed(input.substr(at, step));
        output += answers(protocol);
    }
    require(protocol.wants_input() == (protocol.state() != ServerState::closing));
    return output;
}

void check_readable(std::string_view output) {
    LineBuffer lines(default_max_line);
    lines.append(output);
    while (const auto line = lines.next()) {
        std::error_code error;
        parse_message(*line, error);
        require(!error);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const bool ready = data[0] & 1;
    const std::size_t step = std::size_t{data[1]} + 1;
    const std::string_view input(reinterpret_cast<const char*>(data) + 2, size - 2);

    const auto cut = play(ready, input, step);
    require(cut == play(ready, input, input.size() + 1));
    check_readable(cut);
    // The greeting, the negotiation, and for each line an answer and an event; a line without end
    // is answered, too.
    require(count_lines(cut) <= 2 * count_lines(input) + 3);
    return 0;
}
