#pragma once

#include <sys/types.h>

/// The user namespace in which a process without privilege may make network namespaces of its own.
/// A process that is root there keeps its identity towards everybody outside: files, signals and
/// the host's network are as they were for it. See user_namespaces(7).
namespace qvm::netns {

/// Puts the calling process, which must have one thread, into a new user namespace. It has all
/// capabilities there; its ids are not mapped yet. Throws Error.
void create_user_namespace();

/// Makes `uid` and `gid`, which are ours outside, root's inside, where nobody has mapped any ids
/// yet. Throws Error.
void map_to_root(uid_t uid, gid_t gid);

/// Puts the calling process, which must have one thread, into the user namespace that owns
/// `network_namespace` (a descriptor, borrowed); nothing happens where it is our own. Throws Error.
void join_user_namespace(int network_namespace);

/// Where the kernel refuses setgroups(2), since only one id is mapped: this process and its
/// children are told that it worked. Programs that give up privileges call it and take the refusal
/// for fatal. The groups are the user's own either way. Needs CAP_SYS_ADMIN there. Throws Error.
void tolerate_setgroups();

}  // namespace qvm::netns
