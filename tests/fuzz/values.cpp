// The command line's value parsers: any text is either a value or a Failure.
#include "launcher/values.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "launcher/console_text.h"
#include "launcher/definition.h"
#include "launcher/failure.h"
#include "netns/dns_relay.h"
#include "netns/error.h"
#include "netns/plan.h"

namespace {

template <typename Parse>
void attempt(Parse parse) {
    try {
        (void)parse();
    } catch (const qvm::Failure&) {
    } catch (const qvm::netns::Error&) {
    }
}

/// A network that was read must also be planned or refused.
void plan(std::string_view text) {
    const auto net = qvm::parse_net(text);
    qvm::netns::NetworkSpec spec;
    spec.mode = qvm::netns::Mode::isolated;
    spec.subnet = net.subnet;
    spec.address = net.address;
    spec.mac = net.mac;
    spec.mtu = net.mtu;
    spec.queues = net.queues;
    const auto network = qvm::netns::make_plan(spec, {}, {});
    (void)qvm::netns::describe(network, qvm::netns::make_guest(spec, network));
}

/// What was read is written as something that reads the same.
template <typename Parse>
void write_again(std::string_view text, Parse parse) {
    const auto written = to_string(parse(text));
    if (to_string(parse(written)) != written) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view text{reinterpret_cast<const char*>(data), size};
    attempt([&] { return qvm::parse_memory(text); });
    attempt([&] { return qvm::parse_duration(text); });
    attempt([&] { return qvm::parse_name(text); });
    attempt([&] { return plan(text), 0; });
    attempt([&] { return write_again(text, qvm::parse_publish), 0; });
    attempt([&] { return write_again(text, qvm::parse_drive), 0; });
    attempt([&] { return write_again(text, qvm::parse_volume), 0; });
    attempt([&] { return qvm::parse_definition("vm", std::string{text}); });
    (void)qvm::netns::parse_nameservers(text);
    qvm::LastLine lines;
    lines.feed(text);
    (void)qvm::is_prompt(lines.open());
    (void)qvm::is_panic_end(lines.ended());
    return 0;
}
