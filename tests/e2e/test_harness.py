"""The harness itself: a planted leak of each kind is found, and its name is in the message."""

import os
import pathlib
import socket
import subprocess
import time
import unittest

import harness
import picture
import played_host


class PlantedLeaks(unittest.TestCase):
    def setUp(self):
        self.host = harness.host
        self.before = picture.Picture(self.host)
        self.addCleanup(self._undone)  # the last of the cleanups

    def _undone(self):
        self.assertEqual(picture.difference_to(self.before, self.host, 5), "")

    def assert_found(self, section, *words):
        difference = self.before.diff(picture.Picture(self.host))
        self.assertIn(f"+++ {section}", difference)
        for word in words:
            self.assertIn(word, difference)

    def shell(self, command, undo):
        subprocess.run(command, shell=True, check=True, timeout=20, cwd=self.host.base)
        self.addCleanup(subprocess.run, undo, shell=True, check=True, timeout=20,
                        cwd=self.host.base)

    def process(self, *command):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait, 20)
        self.addCleanup(process.kill)
        return process

    def test_no_leak(self):
        self.assertEqual(self.before.diff(picture.Picture(self.host)), "")

    def test_link(self):
        self.shell("ip link add qvm-leak type bridge", "ip link delete qvm-leak")
        self.assert_found("links", "qvm-leak")

    def test_address(self):
        self.shell("ip address add 10.213.0.0/31 dev lo", "ip address del 10.213.0.0/31 dev lo")
        self.assert_found("addresses", "10.213.0.0/31")

    def test_route_of_any_table(self):
        self.shell("ip route add blackhole 192.168.26.0/24 table 77", "ip route flush table 77")
        self.assert_found("routes", "192.168.26.0/24")

    def test_policy_rule(self):
        self.shell("ip rule add from 192.168.26.0/24 lookup main", "ip rule del from 192.168.26.0/24")
        self.assert_found("policy rules", "192.168.26.0/24")

    def test_nft_table(self):
        self.shell("nft add table ip qvm-leak", "nft delete table ip qvm-leak")
        self.assert_found("nft ruleset", "qvm-leak")

    def test_namespace_with_a_process(self):
        process = self.process("unshare", "--net", "sh", "-c", "echo in; exec sleep 60")
        process.stdout.readline()
        self.assert_found("network namespaces", "net:[")
        self.assert_found("processes", "sleep")

    def test_namespace_held_by_a_descriptor(self):
        process = self.process("unshare", "--net", "sh", "-c", "echo in; exec sleep 60")
        process.stdout.readline()
        space = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
        self.addCleanup(os.close, space)
        process.kill()
        process.wait(20)
        self.assertNotIn("sleep", picture.processes().values())
        self.assert_found("network namespaces", os.readlink(f"/proc/self/fd/{space}"))

    def test_namespace_held_by_a_mount(self):
        self.shell("touch files/space && unshare --net=files/space true",
                   "umount files/space && rm files/space")
        self.assert_found("network namespaces", "net:[")
        self.assert_found("mounts", "files/space")

    def test_process(self):
        self.process("sleep", "60")
        self.assert_found("processes", "sleep")

    def test_forwarding(self):
        name = f"/proc/sys/net/ipv4/conf/{played_host.UPLINK}/forwarding"
        self.shell(f"echo 1 >{name}", f"echo 0 >{name}")
        self.assert_found("sysctls", f"{name} = 1")

    def test_run_directory(self):
        self.shell("mkdir run/leak && touch run/leak/lock", "rm -r run/leak")
        self.assert_found("run directory", "leak/lock")

    def test_data_directory(self):
        self.shell("mkdir -p data/vm/leak", "rm -r data/vm")
        self.assert_found("data directory", "vm/leak")

    def test_cache_and_working_directory(self):
        self.shell("touch cache/overlay-x cwd/core", "rm cache/overlay-x cwd/core")
        self.assert_found("cache directory", "overlay-x")
        self.assert_found("working directory", "core")

    def test_disk_space_of_a_deleted_file(self):
        path = pathlib.Path(self.host.cache, "overlay")
        with open(path, "wb", buffering=0) as file:
            path.unlink()
            file.write(bytes(1024 * 1024))
            self.assert_found("deleted files", "overlay (deleted)")
            self.assert_found("disk space", "blocks used")

    def test_mount(self):
        self.shell("mount -t tmpfs leak files", "umount files")
        self.assert_found("mounts", "leak")

    def test_abstract_socket(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            claim.bind("\0qvm/10.213.0.0/31")
            self.assert_found("abstract sockets", "@qvm/10.213.0.0/31")

    def test_socket(self):
        for family, kind, address, found in (
                (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 7007), "tcp 0100007F:1B5F"),
                (socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 7007), ":1B5F"),
                (socket.AF_UNIX, socket.SOCK_STREAM, str(self.host.files / "leak.sock"),
                 "leak.sock")):
            with self.subTest(found), socket.socket(family, kind) as leak:
                leak.bind(address)
                if kind == socket.SOCK_STREAM:
                    leak.listen()
                self.assert_found("sockets", found)
        (self.host.files / "leak.sock").unlink()

    def test_control_group(self):
        """In one that this process alone is in: there are others on this machine."""
        line = next((line for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()
                     if line.split(":")[1] in ("", "memory")), None)
        if not line:
            self.skipTest("no control groups are mounted")
        _, controller, inside = line.split(":", 2)
        root = pathlib.Path("/sys/fs/cgroup", controller)
        old = root / inside.strip("/")
        own = root / f"harness-{time.monotonic_ns()}"
        own.mkdir()
        self.addCleanup(own.rmdir)
        (own / "cgroup.procs").write_text("0")
        self.addCleanup((old / "cgroup.procs").write_text, "0")
        before = picture.Picture(self.host)
        leak = own / "leak"
        leak.mkdir()
        self.addCleanup(leak.rmdir)
        self.assertRegex(before.diff(picture.Picture(self.host)), r"\+\+\+ cgroups\n.*\n\+.*/leak$")


if __name__ == "__main__":
    harness.main()
