#include "launcher/audit.h"

#include <catch2/catch.hpp>

using namespace qvm;

namespace {

using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("audit: what is the same, in whatever order, is no difference") {
    CHECK(difference({}, {}).empty());
    const netns::HostPicture before{{"link", {"lo", "eth0"}}, {"route", {"default"}}};
    const netns::HostPicture after{{"link", {"eth0", "lo"}}, {"route", {"default"}}};
    CHECK(difference(before, before).empty());
    CHECK(difference(before, after).empty());
}

TEST_CASE("audit: what went and what came, in the order of the sections") {
    const netns::HostPicture before{{"link", {"lo", "eth0 mtu 1500"}}, {"address", {"a", "b"}}};
    const netns::HostPicture after{
        {"link", {"ghost0", "lo", "eth0 mtu 1400"}}, {"address", {"b"}}, {"mount", {"/mnt"}}};
    CHECK(difference(before, after) == Lines{"- link eth0 mtu 1500", "+ link eth0 mtu 1400",
                                             "+ link ghost0", "- address a", "+ mount /mnt"});
}

TEST_CASE("audit: one of two that are alike is a difference") {
    const netns::HostPicture once{{"rule", {"same"}}};
    const netns::HostPicture twice{{"rule", {"same", "same"}}};
    CHECK(difference(once, twice) == Lines{"+ rule same"});
    CHECK(difference(twice, once) == Lines{"- rule same"});
}
