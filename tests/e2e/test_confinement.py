"""What a QEMU that its guest has taken over could reach: as little as it needs."""

import ctypes
import errno
import json
import os
import pathlib
import stat
import unittest

import detached
import harness
import played_host

LIBC = ctypes.CDLL(None, use_errno=True)
NAMESPACES = ("mnt", "ipc", "uts", "net")


def status_of(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def namespace_of(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def inside(pid, work):
    """What `work` returns (JSON) in that process's namespaces and root directory, as its user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]
            root = os.open(f"/proc/{pid}/root", os.O_RDONLY)
            uid, gid = os.stat(f"/proc/{pid}").st_uid, os.stat(f"/proc/{pid}").st_gid
            for fd in spaces:
                if LIBC.setns(fd, 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            os.fchdir(root)
            os.chroot(".")
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            answer = work()
        except BaseException as error:  # what the parent is to see
            answer = repr(error)
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.load(pipe)
    os.waitpid(child, 0)
    return answer


def errors_of(calls):
    """By name, the errno value of each call; 0 where it worked."""
    def one(call):
        try:
            call()
            return 0
        except OSError as error:
            return error.errno
    return {name: one(call) for name, call in calls.items()}


class Confinement(detached.Test):
    def qemu_of(self, name):
        return json.loads(self.succeed("inspect", name))[0]["qemu_pid"]

    def start_hanging(self, *options):
        return self.qemu_of(self.detach(*options, self.hang))

    def assert_unprivileged(self, pid):
        status = status_of(pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[kind], 16), 0, kind)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))

    def assert_nobodys(self, pid):
        """Its ids are nobody's: not root's, not the user's, and the group as well."""
        status = status_of(pid)
        uids, gids = status["Uid"].split(), status["Gid"].split()
        self.assertEqual((len(set(uids)), len(set(gids))), (1, 1))
        first, last = 0x70000000, 0x7fffffff
        if harness.ROOTLESS:
            first, last = played_host.FIRST_SUBID, played_host.FIRST_SUBID + 65535
        for number in (int(uids[0]), int(gids[0])):
            self.assertTrue(first <= number <= last, number)
        return int(uids[0])

    def test_who_it_is(self):
        seen = set()
        for i, net in enumerate(("none", "user", "isolated", "nat")):
            pid = self.start_hanging("--net", net, "--name", f"vm{i}")
            with self.subTest(net=net):
                self.assert_unprivileged(pid)
                seen.add(self.assert_nobodys(pid))
                for kind in ("mnt", "ipc", "uts"):
                    self.assertNotEqual(namespace_of(pid, kind), namespace_of("self", kind))
                own = namespace_of(pid, "net") != namespace_of("self", "net")
                self.assertEqual(own, net != "user")
        self.assertEqual(len(seen), 4)
        self.assertEqual(self.qvm("kill", *(f"vm{i}" for i in range(4))).returncode, 0)

    def test_its_network_is_its_vms(self):
        pid = self.start_hanging("--net", "isolated", "--name", "web")
        inside_it = self.succeed("net", "exec", "web", "--", "readlink", "/proc/self/ns/net")
        self.assertEqual(inside_it.strip(), namespace_of(pid, "net"))

    def test_its_descriptors(self):
        """Disks it may read or write, and no directory."""
        pid = self.start_hanging("--net", "isolated")
        for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            mode = fd.stat().st_mode
            self.assertFalse(stat.S_ISDIR(mode), os.readlink(fd))
            if stat.S_ISREG(mode):
                self.assertRegex(os.readlink(fd), r"/hang\.raw$|/cache/.*deleted|^/memfd:")

    def test_what_it_cannot_reach(self):
        pid = self.start_hanging("--net", "isolated", "--name", "web")
        files = ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/root", "/home", "/tmp", "/var",
                 "/run", "/boot", "/proc/1/environ", "/proc/self/mem", "/sys/class/net",
                 "/dev/kvm", "/dev/net/tun", "/dev/vda", "/dev/mem", str(self.hang),
                 str(self.host.run), str(self.host.cache), str(self.host.run / "web/control.sock")]


        def attempt():
            calls = {name: lambda name=name: os.close(os.open(name, os.O_RDONLY)) for name in files}
            calls["write /usr"] = lambda: os.open("/usr/new", os.O_CREAT | os.O_WRONLY)
            calls["write /"] = lambda: os.open("/new", os.O_CREAT | os.O_WRONLY)
            calls["kill"] = lambda: os.kill(1, 0)
            calls["its firmware"] = lambda: os.close(
                os.open("/usr/share/seabios/bios-256k.bin", os.O_RDONLY))
            return errors_of(calls)

        found = inside(pid, attempt)
        self.assertIsInstance(found, dict, found)
        self.assertEqual(found.pop("its firmware"), 0)
        self.assertIn(found.pop("kill"), (errno.EPERM,))
        for name in ("write /usr", "write /"):
            self.assertIn(found.pop(name), (errno.EROFS, errno.EACCES), name)
        self.assertEqual(set(found.values()), {errno.ENOENT}, found)

    def test_one_vm_cannot_reach_the_other(self):
        one = self.start_hanging("--net", "isolated", "--name", "one")
        other = self.start_hanging("--net", "isolated", "--name", "two")
        found = inside(one, lambda: errors_of({"kill": lambda: os.kill(other, 0)}))
        self.assertEqual(found, {"kill": errno.EPERM})

    def test_files_that_only_their_owner_may_read(self):
        kernel, initrd = (pathlib.Path(word) for word in self.boot_files()[1:4:2])
        secret = [self.host.files / "secret-kernel", self.host.files / "secret-initrd"]
        for source, copy in zip((kernel, initrd), secret):
            copy.write_bytes(source.read_bytes())
            copy.chmod(0o600)
            self.host.give(copy)
            self.addCleanup(copy.unlink)
        done = self.qvm("run", "-q", "--net", "none", "--kernel", secret[0], "--initrd", secret[1],
                        "--append", "console=ttyS0 quiet", "--", "true", seconds=120)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    # --- as an account --------------------------------------------------------------------------

    @unittest.skipIf(harness.ROOTLESS, "another account needs root")
    def test_as_an_account(self):
        pid = self.start_hanging("--net", "isolated", "--qemu-user", "nobody")
        status = status_of(pid)
        self.assertEqual(set(status["Uid"].split()), {"65534"})
        self.assertEqual(int(status["CapEff"], 16), 0)
        self.assertEqual(namespace_of(pid, "mnt"), namespace_of("self", "mnt"))
        self.assertEqual(namespace_of(pid, "net"), namespace_of("self", "net"))
        pid = self.start_hanging("--net", "none", "--qemu-user", "root")
        status = status_of(pid)
        self.assertEqual((set(status["Uid"].split()), status["Seccomp"]), ({"0"}, "0"))
        self.assertNotEqual(int(status["CapEff"], 16), 0)
        self.assert_refused(self.qvm("run", "--net", "none", "--qemu-user", "none-such", self.hang),
                            "--qemu-user 'none-such': no such account")

    @unittest.skipUnless(harness.ROOTLESS, "root may have any account")
    def test_as_oneself(self):
        pid = self.start_hanging("--net", "isolated", "--qemu-user", played_host.USER_NAME)
        self.assertEqual(set(status_of(pid)["Uid"].split()), {str(played_host.USER)})
        self.assert_refused(self.qvm("run", "--net", "none", "--qemu-user", "root", self.hang),
                            "--qemu-user 'root': needs root")

    @unittest.skipUnless(harness.ROOTLESS, "root needs no ranges of ids")
    def test_without_ranges_of_ids(self):
        before = self.instead_of("newuidmap", "exit 1")
        name = self.succeed("run", "-q", "-d", "--net", "nat", self.hang, before=before).strip()
        self.killed_with_test(name)
        pid = self.qemu_of(name)
        self.assertEqual(set(status_of(pid)["Uid"].split()), {str(played_host.USER)})
        self.assert_unprivileged(pid)


if __name__ == "__main__":
    harness.main()
