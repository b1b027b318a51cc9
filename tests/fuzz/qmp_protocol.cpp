// The client's side of QMP against any input: nothing crashes, every call ends exactly once, and
// what comes out does not depend on how the input is cut.

#include <boost/json/serialize.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "qmp/error.h"
#include "qmp/protocol.h"

using namespace qvm::qmp;

namespace {

constexpr std::size_t max_line = 512;
constexpr std::size_t calls = 3;

void require(bool condition) {
    if (!condition) std::abort();
}

std::string show(const Outcome& outcome) {
    if (const auto* refusal = std::get_if<ErrorReply>(&outcome))
        return refusal->error_class + ":" + refusal->desc;
    if (const auto* error = std::get_if<std::error_code>(&outcome)) return error->message();
    return boost::json::serialize(std::get<boost::json::value>(outcome));
}

using Result =
    std::tuple<std::map<std::uint64_t, std::string>, std::string, State, std::error_code>;

void take(Protocol& protocol, Result& result) {
    auto& [outcomes, events, state, error] = result;
    for (const auto& [id, outcome] : protocol.take_completions())
        require(outcomes.emplace(id, show(outcome)).second);
    while (const auto event = protocol.next_event())
        events += event->name + boost::json::serialize(event->data) +
                  std::to_string(event->seconds) + "." + std::to_string(event->microseconds) + "\n";
}

// Past the handshake with calls under way, or before it.
Protocol prepared(Dialect dialect, bool ready) {
    Protocol protocol(dialect, max_line);
    protocol.start(7);
    if (!ready) return protocol;
    if (dialect == Dialect::qmp)
        protocol.feed(
            "{\"QMP\":{\"version\":{\"qemu\":{\"major\":7,\"minor\":2,\"micro\":0}}}}\n"
            "{\"return\":{},\"id\":0}\n");
    else
        protocol.feed("\xff{\"return\":7}\n");
    require(protocol.state() == State::ready);
    for (std::size_t i = 0; i < calls; ++i) protocol.submit("x", {});
    return protocol;
}

Result play(Dialect dialect, bool ready, std::string_view input, std::size_t step) {
    auto protocol = prepared(dialect, ready);
    Result result;
    for (std::size_t at = 0; at < input.size(); at += step) {
        protocol.feed(input.substr(at, step));
        take(protocol, result);
    }
    std::get<State>(result) = protocol.state();
    std::get<std::error_code>(result) = protocol.error();
    protocol.close(Errc::disconnected);
    take(protocol, result);
    require(std::get<0>(result).size() == (ready ? calls + 1 : 1));
    return result;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 2) return 0;
    const auto dialect = data[0] & 1 ? Dialect::guest_agent : Dialect::qmp;
    const bool ready = data[0] & 2;
    const std::size_t step = std::size_t{data[1]} + 1;
    const std::string_view input(reinterpret_cast<const char*>(data) + 2, size - 2);

    const auto cut = play(dialect, ready, input, step);
    const auto whole = play(dialect, ready, input, input.size() + 1);
    require(cut == whole);
    // Nothing that a guest sends, but for a line without end, closes its connection.
    if (dialect == Dialect::guest_agent)
        require(!std::get<std::error_code>(cut) ||
                std::get<std::error_code>(cut) == Errc::line_too_long);
    return 0;
}
