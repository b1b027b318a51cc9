"""A picture of the (played) host: everything that a VM could leave behind, as text to compare."""

import difflib
import os
import pathlib
import re
import subprocess
import time


def _lines(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.splitlines()


def _links():
    """Without the operational state, which the kernel finds some time after the flags that say it."""
    return [re.sub(r" state \S+", "", line) for line in _lines("ip", "-o", "link", "show")]


def processes():
    """{pid: command name} of all that live in this PID namespace; a zombie holds nothing. pasta
    executes itself anew soon after its start, as "passt.avx2", say; its children are left out: it
    clones one for each call in the other namespace and waits for it."""
    found, parents = {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        name, state, parent = re.search(r"\((.*)\) (\S) (\d+)", text, re.DOTALL).groups()
        if state not in "ZX":
            pid = int(path.parent.name)
            found[pid] = "pasta" if name.startswith("passt") else name
            parents[pid] = int(parent)
    return {pid: name for pid, name in found.items()
            if not (name == "pasta" and found.get(parents[pid]) == name)}


def open_files(pid):
    """{descriptor: what it is} of a process."""
    found = {}
    try:
        for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            try:
                found[int(fd.name)] = os.readlink(fd)
            except OSError:
                pass
    except OSError:
        pass
    return found


def _lsns():
    for _ in range(5):
        try:
            return _lines("lsns", "-t", "net", "-n", "-r", "-o", "NS")
        except subprocess.CalledProcessError:  # a process went while it was looked at
            pass
    raise RuntimeError("lsns fails")


def _namespaces():
    """Network namespaces that a process is in, that a descriptor or a mount holds, or that lsns
    or ip finds."""
    found = set(_lines("ip", "netns", "list"))
    found |= {f"net:[{ns}]" for ns in _lsns()}
    for pid in processes():
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            pass
        found |= {path for path in open_files(pid).values() if path.startswith("net:[")}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        if " nsfs " in line:
            found.add(line.split()[3])
    return sorted(found)


def _below(directory, directories=True):
    """Without what goes while one looks: os.walk passes over it, pathlib's rglob does not."""
    for parent, inner, files in os.walk(directory):
        for name in (*inner, *files) if directories else files:
            yield pathlib.Path(parent, name)


def _sysctls():
    found = []
    for family in ("ipv4", "ipv6"):
        for path in _below(f"/proc/sys/net/{family}", directories=False):
            try:
                found.append(f"{path} = {path.read_text().strip()}")
            except OSError:
                pass
    return sorted(found)


def _tree(directory):
    return sorted(str(path.relative_to(directory)) for path in _below(directory))


def _deleted_files(directory):
    found = []
    for pid, name in processes().items():
        for fd, path in open_files(pid).items():
            if path.startswith(str(directory)) and path.endswith(" (deleted)"):
                found.append(f"{name}: descriptor {fd}: {path}")
    return sorted(found)


def _disk_space(directory):
    status = os.statvfs(directory)
    return [f"{status.f_blocks - status.f_bfree} blocks used"]


def _abstract_sockets():
    lines = pathlib.Path("/proc/net/unix").read_text().splitlines()
    return sorted(line.split()[-1] for line in lines if line.split()[-1].startswith("@qvm"))


def _sockets():
    """Of this network namespace, in a state that only a process can keep one in: what TCP has in
    TIME_WAIT or on its way there is the kernel's own."""
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for _, local, remote, state, *_ in _table(protocol):
            if not protocol.startswith("tcp") or state in TCP_STATES:
                found.append(f"{protocol} {local} {remote} {state}")
    found += [f"packet {' '.join(words[2:5])}" for words in _table("packet")]
    for _, _, _, flags, *_, last in _table("unix"):
        if int(flags, 16) & UNIX_LISTENS:
            found.append(f"unix {last}")
    return sorted(found)


TCP_STATES = ("01", "02", "03", "08", "0A")  # ESTABLISHED, SYN_SENT, SYN_RECV, CLOSE_WAIT, LISTEN
UNIX_LISTENS = 0x10000


def _table(name):
    """Rows of /proc/net/NAME, in words."""
    path = pathlib.Path("/proc/net", name)
    if not path.exists():
        return []
    return [line.split() for line in path.read_text().splitlines()[1:]]


def _cgroups():
    """Below those that this process is in, in every hierarchy, and whatever is named after us."""
    found = set()
    own = [line.split(":", 2)[2].strip("/") for line in
           pathlib.Path("/proc/self/cgroup").read_text().splitlines()]
    for parent, inner, _ in os.walk("/sys/fs/cgroup"):
        inside = pathlib.Path(parent).relative_to("/sys/fs/cgroup").parts
        for name in inner:
            path = "/".join((*inside, name))
            if "qvm" in name or any(one and f"/{one}/" in f"/{path}" for one in own):
                found.add(path)
    return sorted(found)


class Picture:
    """Sections of lines. `host` has the directories run, data, cache and cwd."""

    def __init__(self, host, sections=None):
        take = self._sections(host)
        self.sections = {name: take[name]() for name in sections or take}

    @staticmethod
    def _sections(host):
        """How each is taken; what needs no other program comes first."""
        return {
            "processes": lambda: [f"{pid} {name}" for pid, name in sorted(processes().items())],
            "abstract sockets": _abstract_sockets,
            "sockets": _sockets,
            "disk space": lambda: _disk_space(host.cache),
            "deleted files": lambda: _deleted_files(host.cache),
            "cache directory": lambda: _tree(host.cache),
            "data directory": lambda: [path for path in _tree(host.data)
                                       if path != "vm" and not path.startswith("ssh")],
            "working directory": lambda: _tree(host.cwd),
            "run directory": lambda: _tree(host.run),
            "mounts": lambda: pathlib.Path("/proc/self/mountinfo").read_text().splitlines(),
            "cgroups": _cgroups,
            "links": _links,
            "network namespaces": _namespaces,
            "nft ruleset": lambda: _lines("nft", "list", "ruleset"),
            "addresses": lambda: _lines("ip", "-o", "address", "show"),
            "routes": lambda: _lines("ip", "-4", "route", "show", "table", "all")
            + _lines("ip", "-6", "route", "show", "table", "all"),
            "policy rules": lambda: _lines("ip", "-4", "rule") + _lines("ip", "-6", "rule"),
            "sysctls": _sysctls,
        }

    def diff(self, other):
        """What `other` has differently, as text; empty where nothing."""
        text = []
        for name, lines in self.sections.items():
            changes = difflib.unified_diff(lines, other.sections[name], name, name, n=0, lineterm="")
            text += changes
        return "\n".join(text)


def difference_to(before, host, seconds, sections=None):
    """The difference between the picture `before` and the host, once it is empty or after
    `seconds`: the kernel takes namespaces back behind the scenes. A section that is as it was is
    not looked at again: nothing comes back."""
    deadline = time.monotonic() + seconds
    left = [name for name in before.sections if sections is None or name in sections]
    while True:
        while left and not _part(before, left[:1]).diff(Picture(host, left[:1])):
            del left[0]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return _part(before, left).diff(Picture(host, left)) if left else ""


def _part(picture, sections):
    part = Picture.__new__(Picture)
    part.sections = {name: picture.sections[name] for name in sections}
    return part
