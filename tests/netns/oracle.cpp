#include "oracle.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdio>

namespace oracle {

namespace json_lib = boost::json;
using qvm::netns::Namespace;

namespace {

std::pair<int, std::string> run(const std::string& command) {
    std::string output;
    FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
    if (pipe == nullptr) return {-1, "popen failed"};
    std::array<char, 4096> buffer;
    while (std::size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe))
        output.append(buffer.data(), size);
    return {::pclose(pipe), output};
}

}  // namespace

std::string sh(const std::string& command) {
    auto [status, output] = run(command);
    INFO(command << ": " << output);
    REQUIRE(status == 0);
    return output;
}

std::string sh(const Namespace& space, const std::string& command) {
    std::pair<int, std::string> result;
    space.run([&] { result = run(command); });
    INFO(command << ": " << result.second);
    REQUIRE(result.first == 0);
    return result.second;
}

json_lib::value json(const std::string& command) {
    return json_lib::parse(sh(command));
}

json_lib::value json(const Namespace& space, const std::string& command) {
    return json_lib::parse(sh(space, command));
}

bool answers(const Namespace& space, const std::string& address, const std::string& source) {
    std::pair<int, std::string> result;
    space.run([&] {
        result = run(fmt::format("ping -c 20 -i 0.2 -w 5 -I {} {} | grep -m1 'bytes from'", source,
                                 address));
    });
    return result.first == 0;
}

json_lib::value find(const json_lib::value& values, const char* key, const char* value) {
    for (const auto& object : values.as_array()) {
        const auto* member = object.as_object().if_contains(key);
        if (member != nullptr && member->is_string() && member->as_string() == value) return object;
    }
    return nullptr;
}

bool becomes_empty(const std::string& command) {
    for (int i = 0; i < 300; ++i) {
        if (run(command).second.empty()) return true;
        ::usleep(10'000);
    }
    return false;
}

Internet::Internet(unsigned mtu) {
    sh("ip link set lo up");
    sh(
        fmt::format("ip link add wan0 mtu {0} type veth peer name host0 mtu {0} netns "
                    "/proc/{1}/fd/{2}",
                    mtu, ::getpid(), space.fd()));
    sh("ip addr add 203.0.113.2/24 dev wan0 && ip link set wan0 up");
    sh("ip route add default via 203.0.113.1");
    sh(space,
       "ip link set lo up && ip addr add 203.0.113.1/24 dev host0 && "
       "ip addr add 198.51.100.7/32 dev lo && ip link set host0 up");
    // The carrier comes a moment later.
    sh("for i in $(seq 150); do ip -br link show wan0 | grep -q ' UP ' && exit 0; sleep 0.02; done;"
       " exit 1");
}

// By its far end: the near one may have another name by now, and would outlive the test.
Internet::~Internet() {
    space.run([] { run("ip link del host0"); });
}

}  // namespace oracle
