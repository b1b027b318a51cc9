"""The host that the tests play: this process's own network, mount and PID namespaces, with an
uplink to another namespace that plays the internet. Nothing of it outlives this process."""

import os
import pathlib
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

UPLINK = "uplink0"
ADDRESS = "203.0.113.2"  # TEST-NET-3 and TEST-NET-2 of RFC 5737: routed nowhere
ROUTER = "203.0.113.1"
SERVICE = "198.51.100.7"
SERVICE_NAME = "service.example"
ADDRESS6 = "2001:db8:1::2"  # RFC 3849
ROUTER6 = "2001:db8:1::1"
SERVICE6 = "2001:db8:7::7"
USER = 7301  # of the user without privilege, and of its group
USER_NAME = "qvm-e2e"
FIRST_SUBID = 700000  # of the ids that are that user's, too (subuid(5))
HERE = pathlib.Path(__file__).resolve().parent


def ip(*words, pid=None):
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid else []
    subprocess.run([*enter, "ip", *words], check=True, timeout=20)


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def sysctl(name, value):
    pathlib.Path("/proc/sys", *name.split(".")).write_text(str(value))


class PlayedHost:
    def __init__(self, base):
        self.base = pathlib.Path(base)
        self.owner = 0
        subprocess.run(["mount", "-t", "tmpfs", "e2e", base], check=True, timeout=20)
        self.base.chmod(0o755)
        self.run, self.data, self.cache, self.cwd, self.files = (
            self._directory(name) for name in ("run", "data", "cache", "cwd", "files"))
        # A file system of its own shows every block that is not given back.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "cache", str(self.cache)],
                       check=True, timeout=20)
        self._connect()
        self._serve_names()

    def _directory(self, name):
        path = self.base / name
        path.mkdir(mode=0o700 if name in ("run", "data", "cache") else 0o755)
        return path

    def _connect(self):
        self.internet = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-B", str(HERE / "internet.py")],
            stdout=subprocess.PIPE)
        if self.internet.stdout.readline() != b"ready\n":
            raise RuntimeError("the internet did not start")
        other = self.internet.pid
        sysctl("net.ipv4.conf.all.forwarding", 0)
        sysctl("net.ipv4.ping_group_range", "0 2147483647")  # as distributions do
        sysctl("net.ipv6.conf.default.accept_dad", 0)  # no address is tentative at first
        ip("link", "set", "lo", "up")
        ip("link", "add", UPLINK, "type", "veth", "peer", "name", "wan0", "netns", str(other))
        ip("address", "add", f"{ROUTER}/24", "dev", "wan0", pid=other)
        ip("address", "add", f"{SERVICE}/32", "dev", "lo", pid=other)
        ip("link", "set", "lo", "up", pid=other)
        ip("link", "set", "wan0", "up", pid=other)
        ip("address", "add", f"{ADDRESS}/24", "dev", UPLINK)
        ip("link", "set", UPLINK, "up")
        ip("route", "add", "default", "via", ROUTER)
        self._settle()

    @staticmethod
    def _settle():
        """The carrier comes a moment later, and the IPv6 address with it."""
        deadline = time.monotonic() + 20
        wanted = f"fe80::/64 dev {UPLINK}" if os.path.exists("/proc/net/if_inet6") else ""
        while time.monotonic() < deadline:
            link = _output("ip", "-o", "link", "show", UPLINK)
            if "state UP" in link and wanted in _output("ip", "-6", "route", "show"):
                return
            time.sleep(0.02)
        raise RuntimeError("the uplink does not come up")

    def add_ipv6(self):
        other = self.internet.pid
        ip("address", "add", f"{ROUTER6}/64", "dev", "wan0", "nodad", pid=other)
        ip("address", "add", f"{SERVICE6}/128", "dev", "lo", "nodad", pid=other)
        ip("address", "add", f"{ADDRESS6}/64", "dev", UPLINK, "nodad")
        ip("route", "add", "default", "via", ROUTER6)

    def remove_ipv6(self):
        other = self.internet.pid
        ip("-6", "route", "del", "default")
        ip("address", "del", f"{ADDRESS6}/64", "dev", UPLINK)
        ip("address", "del", f"{SERVICE6}/128", "dev", "lo", pid=other)
        ip("address", "del", f"{ROUTER6}/64", "dev", "wan0", pid=other)

    def add_user(self):
        """An account that only this mount namespace knows. What qvm writes to is that user's."""
        home = self._directory("home")
        for file, line in (("passwd", f"{USER_NAME}:x:{USER}:{USER}::{home}:/bin/sh"),
                           ("group", f"{USER_NAME}:x:{USER}:"),
                           ("subuid", f"{USER_NAME}:{FIRST_SUBID}:65536"),
                           ("subgid", f"{USER_NAME}:{FIRST_SUBID}:65536")):
            path = pathlib.Path("/etc", file)
            if path.exists():
                self._mount_over(path, path.read_text() + line + "\n")
        self.owner = USER
        for path in (home, self.run, self.data, self.cache, self.cwd, self.files):
            self.give(path)
        os.environ["HOME"] = str(home)
        tun = self.base / "tun"
        os.mknod(tun, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        tun.chmod(0o666)  # as distributions have it
        subprocess.run(["mount", "--bind", str(tun), "/dev/net/tun"], check=True, timeout=20)

    def give(self, path):
        """To the user that qvm runs as."""
        os.chown(path, self.owner, self.owner)

    def id_of(self, number):
        """Whose that is on the host, what a guest's user of that number makes in a volume."""
        if self.owner == 0:
            return number
        return FIRST_SUBID + number - 1 if number > 0 else self.owner

    def _mount_over(self, path, text):
        copy = self.base / path.name
        copy.write_text(text)
        subprocess.run(["mount", "--bind", str(copy), str(path)], check=True, timeout=20)
        return copy

    def bind(self, path, name):
        """Another name for a file, by which everybody can read it."""
        other = self.base / f"{name}.bound"
        other.touch()
        subprocess.run(["mount", "--bind", "-o", "ro", str(path), str(other)], check=True,
                       timeout=20)
        return str(other)

    def set_mtu(self, mtu):
        ip("link", "set", "wan0", "mtu", str(mtu), pid=self.internet.pid)
        ip("link", "set", UPLINK, "mtu", str(mtu))
        self._settle()

    def _serve_names(self):
        """As systemd-resolved does: a stub that only the host itself can reach."""
        self.resolv_conf = self._mount_over(pathlib.Path("/etc/resolv.conf").resolve(),
                                            "nameserver 127.0.0.53\n")
        self.stub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.stub.bind(("127.0.0.53", 53))
        threading.Thread(target=self._answer_names, daemon=True).start()

    def _answer_names(self):
        while True:
            query, client = self.stub.recvfrom(4096)
            try:
                self.stub.sendto(answer(query), client)
            except (IndexError, struct.error):
                pass


def answer(query):
    """A DNS answer (RFC 1035, section 4.1): SERVICE_NAME has SERVICE, other names do not exist."""
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode("ascii", "replace"))
        at += 1 + query[at]
    question = query[12:at + 5]
    (kind,) = struct.unpack("!H", query[at + 1:at + 3])
    known = ".".join(labels).lower() == SERVICE_NAME
    records = b""
    if known and kind == 1:
        records = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(SERVICE)
    flags = 0x8180 | (0 if known else 3)
    return query[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0) + question + records
