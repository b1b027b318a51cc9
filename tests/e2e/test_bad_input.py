"""What is refused: one line, perhaps a hint, exit status 125, and nothing was made."""

import os
import pathlib
import shutil
import stat
import subprocess

import harness

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def hiding(*commands):
    """Words before qvm's that change what it sees, in a mount namespace of its own."""
    script = " && ".join((*commands, 'exec "$@"'))
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"]


def hiding_program(name):
    paths = {os.path.realpath(f"{directory}/{name}") for directory in
             (*os.environ["PATH"].split(":"), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin",
              "/bin") if os.path.exists(f"{directory}/{name}")}
    return hiding(*(f"mount --bind /dev/null {path}" for path in sorted(paths)))


class BadInput(harness.Test):
    def file(self, name, content, mode=0o644):
        path = self.host.files / name
        path.write_bytes(content)
        path.chmod(mode)
        self.addCleanup(path.unlink)
        return path

    def setUp(self):
        super().setUp()
        (self.host.cwd / "keep").touch()  # a relative path to use
        self.addCleanup((self.host.cwd / "keep").unlink)

    def refused(self, why, *words, hint=None, before=()):
        """`qvm WORDS` is refused, and the run directory is as empty as before."""
        with self.subTest(" ".join(map(str, words))):
            self.assert_refused(self.qvm(*words, before=before), why, hint)
            self.assertEqual(list(self.host.run.iterdir()), [])

    def test_a_pipe_is_no_file(self):
        """Nobody ever opens its other end."""
        fifo = self.host.files / "fifo"
        os.mkfifo(fifo)
        self.addCleanup(fifo.unlink)
        self.refused("not a regular file", "run", "-q", "--net", "none", fifo)
        self.refused("not a regular file", "run", "-q", "--net", "none", "--kernel", fifo)

    def test_output_that_cannot_be_written(self):
        full = ["sh", "-c", 'exec "$@" >/dev/full', "sh"]
        self.refused("write to stdout: No space left", "version", before=full)
        self.refused("write to stdout: No space left", "run", "-q", "-m", "64M", "--net", "none",
                     self.hang, before=full)
        full_error = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
        self.assertEqual(self.qvm("run", "missing.qcow2", before=full_error).returncode, 125)

    def test_images(self):
        demo = pathlib.Path(self.demo).read_bytes()
        directory = self.host.files
        cases = {
            directory / "missing.qcow2": "No such file or directory",
            self.file("empty", b""): "empty",
            self.file("truncated.qcow2", demo[:len(demo) // 2]): "truncated",
            self.file("header.qcow2", demo[:40]): "too short|truncated",
            self.file("magic.qcow2", demo[:4] + bytes(70000)): "qcow2",
            self.file("odd", b"\0" * 1000): "not a disk image",
            self.file("zeros", bytes(1024 * 1024)): "not a disk image",
            self.file("text", b"not a disk\n" * 512): "not a disk image",
            self.file("gzip", b"\x1f\x8b" + bytes(1022)): "compressed",
            directory: "is a directory",
            "/dev/null": "not a regular file|not a disk",
            "keep": "empty",
        }
        for image, why in cases.items():
            self.refused(f"'{image}'.*({why})", "run", "--net", "isolated", image)

    def test_image_that_names_other_files(self):
        """A guest that wrote a header of qcow2 must not open the host's files."""
        secret = self.file("secret.raw", harness.HANG)
        path = self.host.files / "backed.qcow2"
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path)
        self.addCleanup(path.unlink)
        self.refused("'.*backed.qcow2'", "run", "--net", "none", path)

    @harness.needs_root("it is taken away here")
    def test_unreadable_image(self):
        qvm = self.host.base / "qvm"  # where nobody may run it
        shutil.copy(harness.QVM, qvm)
        self.addCleanup(qvm.unlink)
        image = self.file("private.raw", harness.HANG, 0o600)
        own = self.host.base / "own"
        own.mkdir()
        os.chown(own, 65534, 65534)
        self.addCleanup(shutil.rmtree, own)
        done = subprocess.run(
            [*NOBODY, "env", f"QVM_RUN_DIR={own}/run", f"QVM_CACHE_DIR={own}/cache", qvm, "run",
             "--net", "user", image],
            capture_output=True, text=True, timeout=30, cwd="/", stdin=subprocess.DEVNULL)
        self.assert_refused(done, f"'{image}': Permission denied")
        self.assertEqual(os.listdir(own), [])

    def test_persist_on_what_cannot_be_written(self):
        image = self.file("read-only.raw", harness.HANG)
        before = hiding(f"mount --bind {image} {image}", f"mount -o remount,ro,bind {image}")
        self.refused("'.*read-only.raw': Read-only file system", "run", "--net", "none",
                     "--persist", image, before=before)

    def test_networks(self):
        for net, why in {
            "isolated,subnet=192.168.26.0/33": "--net .*192.168.26.0/33.*network",
            "isolated,subnet=192.168.26": "--net .*subnet=192.168.26",
            "nat,subnet=192.168.26.5/24": "192.168.26.5/24.*host bits",
            "nat,subnet=192.168.26.0/31": "/31.*prefix",
            "nat,subnet=0.0.0.0/0": "prefix",
            "nat,address=10.0.0.1": "address 10.0.0.1.*not in the subnet",
            "nat,address=192.168.26.1": "192.168.26.1.*gateway",
            "nat,address=x": "address=x",
            "nat,mtu=1": "mtu 1",
            "nat,mtu=-1": "mtu=-1",
            "nat,queues=0": "queues 0",
            "nat,queues=100000": "queues 100000",
            "nat,mac=zz:00:00:00:00:00": "mac.*zz",
            "nat,mac=01:00:5e:00:00:01": "mac.*multicast",
            "nat,pool=203.0.113.0/24": "pool 203.0.113.0/24",
            "flat,subnet=203.0.113.0/24": "subnet 203.0.113.0/24.*(address|route)|needs root",
            "flat,pool=10.0.0.0/8": "pool",
            "nat,colour=red": "colour=red.*not a key",
            "nat,subnet": "subnet.*value",
            "none,mac=52:54:00:00:00:01": "mac",
            "user,mtu=1400": "user",
            "bogus": "bogus",
            "": "--net",
        }.items():
            self.refused(why, "run", "--net", net, self.hang)

    @harness.needs_root("flat needs root")
    def test_flat_without_an_uplink(self):
        self.refused("uplink|route", "run", "--net", "flat", self.hang,
                     before=["unshare", "--net"])

    def test_options(self):
        more_than_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 + 1024
        for words, why in (
            (["-m", "0"], "--memory '0'"),
            (["-m", "lots"], "--memory 'lots'"),
            (["-m", "1X"], "--memory '1X'"),
            (["-m", "-5"], "--memory '-5'|-m|-5"),
            (["-m", more_than_host], "--memory.*more than this host"),
            (["-m", "1e30T"], "--memory"),
            (["--cpus", "0"], "--cpus '0'"),
            (["--cpus", "two"], "--cpus 'two'"),
            (["--cpus", "100000"], "--cpus '100000'"),
            (["--timeout", "0"], "--timeout '0'"),
            (["--timeout", "soon"], "--timeout 'soon'"),
            (["--accel", "magic"], "--accel 'magic'"),
            (["--name", "a/b"], "--name 'a/b'"),
            (["--name", "../x"], "--name '../x'"),
            (["--name", ""], "--name"),
            (["--no-such-option"], "--no-such-option"),
            (["--memory"], "--memory"),
            (["--initrd", self.hang], "--initrd"),
            (["--append", "x"], "--append"),
            (["--kernel", "/missing"], "--kernel.*'/missing': No such file"),
            (["--kernel", "/"], "--kernel.*'/'.*directory"),
            (["extra-word"], "extra-word"),
        ):
            self.refused(why, "run", "--net", "none", self.hang, *words)

    def test_commands(self):
        self.refused("IMAGE", "run")
        self.refused("IMAGE", "run", "--persist")
        self.refused(".", "no-such-command")
        self.refused(".")
        self.refused(".", "image")

    def test_missing_programs(self):
        for program, package in {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils",
                                 "dnsmasq": "dnsmasq-base"}.items():
            self.refused(f"'?{program}'?", "run", "--net", "isolated", self.hang, hint=package,
                         before=hiding_program(program))

    def test_no_tun(self):
        self.refused("/dev/net/tun.*No such file", "run", "--net", "nat", self.hang,
                     before=hiding("mount -t tmpfs none /dev/net"))

    @harness.needs_root("it is taken away here")
    def test_no_privilege_and_no_user_namespaces(self):
        before = ["unshare", "--user", "--map-root-user", "sh", "-c",
                  "echo 0 >/proc/sys/user/max_user_namespaces && "
                  'exec setpriv --bounding-set=-sys_admin -- "$@"', "sh"]
        for net in ("isolated", "nat"):
            self.refused("create a user namespace: No space left", "run", "--net", net, self.hang,
                         before=before, hint="qvm doctor")
        # What needs no namespace does without.
        done = self.qvm("run", "-q", "--net", "none", "--timeout", "2s", self.hang, before=before)
        self.assertEqual(done.returncode, 124, done.stderr)

    def test_run_directory_of_somebody_else(self):
        theirs = self.host.base / "theirs"
        theirs.mkdir()
        os.chown(theirs, 65534, 65534)
        self.addCleanup(theirs.rmdir)
        done = self.qvm("run", "-q", "--net", "none", self.hang,
                        before=["env", f"QVM_RUN_DIR={theirs}"])
        self.assert_refused(done, f"{theirs}.*belongs to somebody else")
        self.assertEqual(stat.S_IMODE(theirs.stat().st_mode), 0o755)


if __name__ == "__main__":
    harness.main()
