#pragma once

#include <libmnl/libmnl.h>

#include <cstddef>

namespace qvm::netns {

/// Calls `visit` with each attribute (const nlattr&) of a netlink message that follows a header of
/// `offset` bytes; libmnl's macros for it need conversions that C++ does not make.
template <typename Visit>
void for_each_attribute(const nlmsghdr& message, std::size_t offset, Visit visit) {
    const auto* end = static_cast<const char*>(mnl_nlmsg_get_payload_tail(&message));
    const auto* attribute =
        static_cast<const nlattr*>(mnl_nlmsg_get_payload_offset(&message, offset));
    for (; mnl_attr_ok(attribute, static_cast<int>(end - reinterpret_cast<const char*>(attribute)));
         attribute = mnl_attr_next(attribute))
        visit(*attribute);
}

}  // namespace qvm::netns
