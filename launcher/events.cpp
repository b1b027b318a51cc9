#include "launcher/events.h"

#include <unistd.h>

#include <boost/json.hpp>

#include "launcher/definition.h"
#include "launcher/unix_socket.h"

namespace qvm {

namespace fs = std::filesystem;

void announce(const Directories& directories, const std::string& event, const std::string& vm,
              boost::json::object data) noexcept {
    try {
        std::error_code none;
        fs::directory_iterator listeners{directories.listeners(), none};
        if (none) return;
        boost::json::object object{{"event", event}, {"name", vm}, {"time", timestamp()}};
        for (auto& [key, value] : data) object[key] = value;
        const auto text = boost::json::serialize(object);
        for (const auto& listener : listeners)
            if (const auto socket = connect_to(listener.path(), event_socket | SOCK_NONBLOCK))
                ::send(socket->get(), text.data(), text.size(), MSG_NOSIGNAL);
    } catch (const std::exception&) {
        // Nobody's life hangs on it.
    }
}

void sweep_listeners(const Directories& directories) {
    const auto directory = directories.listeners();
    std::error_code none;
    if (!fs::exists(directory, none)) return;
    const auto guard = lock_directory(directory);  // nobody begins to listen meanwhile
    for (const auto& listener : fs::directory_iterator{directory, none})
        if (!connect_to(listener.path(), event_socket | SOCK_NONBLOCK) && errno == ECONNREFUSED)
            ::unlink(listener.path().c_str());
    ::rmdir(directory.c_str());
}

}  // namespace qvm
