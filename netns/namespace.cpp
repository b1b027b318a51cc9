#include "netns/namespace.h"

#include <fcntl.h>
#include <sched.h>

#include <exception>
#include <system_error>
#include <thread>

#include "netns/error.h"

namespace qvm::netns {

namespace {

UniqueFd open_own_namespace() {
    return UniqueFd{check(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC),
                          "open '/proc/thread-self/ns/net'")};
}

std::jthread start_thread(const std::function<void()>& work) {
    try {
        return std::jthread{work};
    } catch (const std::system_error& error) {
        throw Error("start a thread for the network namespace", error.code().value());
    }
}

void on_own_thread(const std::function<void()>& work, const std::function<void()>& meanwhile = {}) {
    std::exception_ptr failure;
    {
        const auto thread = start_thread([&] {
            try {
                work();
            } catch (...) {
                failure = std::current_exception();
            }
        });
        if (meanwhile) meanwhile();
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace

Namespace Namespace::create(const std::function<void()>& inside,
                            const std::function<void()>& meanwhile) {
    UniqueFd fd;
    const auto work = [&] {
        check(::unshare(CLONE_NEWNET), "create network namespace");
        fd = open_own_namespace();
        if (inside) inside();
    };
    on_own_thread(work, meanwhile);
    return Namespace{std::move(fd)};
}

Namespace Namespace::current() {
    return Namespace{open_own_namespace()};
}

void Namespace::run(const std::function<void()>& work) const {
    on_own_thread([&] {
        check(::setns(fd_.get(), CLONE_NEWNET), "enter network namespace");
        work();
    });
}

}  // namespace qvm::netns
