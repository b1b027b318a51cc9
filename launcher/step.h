#pragma once

#include <boost/system/system_error.hpp>
#include <string>

#include "launcher/failure.h"

namespace qvm {

/// Does `work`. What Asio throws there names a call at best ("assign"); `step` says what it was for
/// ("watch 'dnsmasq'").
template <typename Work>
decltype(auto) in_step(const std::string& step, Work&& work) {
    try {
        return work();
    } catch (const boost::system::system_error& error) {
        throw Failure(step + ": " + error.code().message());
    }
}

}  // namespace qvm
