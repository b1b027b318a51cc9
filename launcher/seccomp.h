#pragma once

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstddef>
#include <cstdint>

namespace qvm {

/// Whose system calls a filter of seccomp(2) is about: their numbers are an architecture's own.
#if defined(__x86_64__)
inline constexpr std::uint32_t own_architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
inline constexpr std::uint32_t own_architecture = AUDIT_ARCH_AARCH64;
#else
#error "which architecture is this to seccomp?"
#endif

}  // namespace qvm
