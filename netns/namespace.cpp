#include "netns/namespace.h"

#include <fcntl.h>
#include <sched.h>

#include <exception>
#include <thread>

#include "netns/error.h"

namespace qvm::netns {

namespace {

UniqueFd open_own_namespace() {
    return UniqueFd{check(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC),
                          "open '/proc/thread-self/ns/net'")};
}

void on_own_thread(const std::function<void()>& work) {
    std::exception_ptr failure;
    std::thread([&] {
        try {
            work();
        } catch (...) {
            failure = std::current_exception();
        }
    }).join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace

Namespace Namespace::create(const std::function<void()>& inside) {
    UniqueFd fd;
    on_own_thread([&] {
        check(::unshare(CLONE_NEWNET), "create network namespace");
        fd = open_own_namespace();
        if (inside) inside();
    });
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
