#pragma once

#include <stdlib.h>

#include <filesystem>

/// A directory that goes with this object.
struct Temporary {
    Temporary() {
        char name[] = "/tmp/qvm-test-XXXXXX";
        path = ::mkdtemp(name);
    }
    Temporary(const Temporary&) = delete;
    Temporary& operator=(const Temporary&) = delete;
    ~Temporary() { std::filesystem::remove_all(path); }

    std::filesystem::path path;
};
