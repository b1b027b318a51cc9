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

/// Refuses the calling process, for good, whatever is no work on files that it has open or may
/// open: processes that it would start, changes to the names and attributes of files, access to
/// other processes, sockets, io_uring, mounts and namespaces fail with EPERM, and a call by another
/// architecture's number ends it. It must have set no_new_privs. Allocates nothing. Whether it
/// could; else errno.
bool keep_to_itself() noexcept;

}  // namespace qvm
