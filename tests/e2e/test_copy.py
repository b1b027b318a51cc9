"""qvm cp: files and trees to and from a guest."""

import hashlib
import os
import random
import signal
import stat
import subprocess

import harness

MIB = 1024 * 1024


def describe(root):
    """{path: (kind and mode, content)} of a tree."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                found[os.path.relpath(path, root)] = "link", os.readlink(path)
            elif stat.S_ISDIR(info.st_mode):
                found[os.path.relpath(path, root)] = oct(info.st_mode), None
            else:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = oct(info.st_mode), file.read()
    return found


class Copy(harness.Test):
    def setUp(self):
        super().setUp()
        self.here = self.host.files / "copy"
        self.here.mkdir()
        self.addCleanup(self.tool, "rm", "-rf", self.here)
        self.box = self.detach("--name", "box", "--net", "none", *self.boot_files())

    def cp(self, *words, cwd=None):
        return subprocess.run([harness.QVM, "cp", *map(str, words)], capture_output=True, text=True,
                              timeout=120, cwd=cwd or self.here)

    def copied(self, *words, cwd=None):
        done = self.cp(*words, cwd=cwd)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def sh(self, script):
        done = subprocess.run([harness.QVM, "exec", "box", "sh", "-c", script], capture_output=True,
                              text=True, timeout=60)
        self.assertEqual(done.stderr, "")
        return done.stdout

    def assert_fails(self, done, *words):
        self.assertEqual((done.returncode, done.stdout), (125, ""), done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_files(self):
        data = random.Random(1).randbytes(4 * MIB)
        source = self.here / "a file"
        source.write_bytes(data)
        source.chmod(0o751)
        self.copied(source, "box:/tmp/there")
        self.assertEqual(self.sh("stat -c %a /tmp/there; sha256sum </tmp/there; ls -A /tmp"),
                         f"751\n{hashlib.sha256(data).hexdigest()}  -\nthere\n")
        with self.subTest("and back"):
            self.copied("box:/tmp/there", "back")
            self.assertEqual((self.here / "back").read_bytes(), data)
            self.assertEqual(stat.S_IMODE((self.here / "back").stat().st_mode), 0o751)
        with self.subTest("into a directory"):
            self.copied("a file", "box:/tmp")
            self.copied("a file", "box:/tmp/")
            self.assertEqual(self.sh("ls -A /tmp"), "a file\nthere\n")
            (self.here / "into").mkdir()
            self.copied("box:tmp/a file", "into")
            self.assertEqual((self.here / "into/a file").read_bytes(), data)
        with self.subTest("over another, by names that look like options"):
            (self.here / "-x").write_text("new")
            self.copied("./-x", "box:/tmp/there")
            self.assertEqual(self.sh("cat /tmp/there"), "new")
            self.copied("-q", "box:/tmp/there", "a file")
            self.assertEqual(source.read_text(), "new")
            self.copied("./-x", "box:/-x")
            self.copied("box:-x", "./-y")
            self.assertEqual((self.here / "-y").read_text(), "new")
        with self.subTest("nothing else is left"):
            self.assertEqual(sorted(os.listdir(self.here)), ["-x", "-y", "a file", "back", "into"])
            self.assertEqual(self.sh("ls -A / /tmp | grep -c qvm; true"), "0\n")

    def test_trees(self):
        tree = self.here / "tree"
        (tree / "empty").mkdir(parents=True)
        (tree / "deep/er").mkdir(parents=True)
        for name, mode in (("x", 0o644), ("deep/é ü", 0o600), ("deep/er/run", 0o777), ("-f", 0o444)):
            (tree / name).write_bytes(name.encode() * 1000)
            (tree / name).chmod(mode)
        (tree / "empty").chmod(0o1700)
        (tree / "link").symlink_to("deep/er/run")
        (tree / "dangling").symlink_to("/none")
        wanted = describe(tree)
        self.copied("tree", "box:/tmp/new")
        self.copied("box:/tmp/new", "back")
        got = describe(self.here / "back")
        got["empty"] = wanted["empty"]  # the sticky bit is one of those that the host does not take
        self.assertEqual(got, wanted)
        with self.subTest("into one that is there"):
            self.copied("tree/", "box:/tmp/new")
            self.copied("box:/tmp/new/tree", "back")
            self.assertEqual(len(describe(self.here / "back/tree")), len(wanted))
        with self.subTest("the contents only"):
            self.copied("tree/.", "box:/srv")
            self.copied(".", "box:/tmp/all", cwd=tree)
            (self.here / "contents").mkdir()
            self.copied("box:/srv/.", "contents")
            self.assertEqual(describe(self.here / "contents").keys(), wanted.keys())
            self.assertEqual(self.sh("ls -A /tmp/all | wc -l"), "6\n")

    def test_what_cannot_be(self):
        (self.here / "file").write_text("x")
        self.assert_fails(self.cp("none", "box:/tmp"), "copy 'none' to 'box:/tmp'",
                          "No such file or directory")
        self.assert_fails(self.cp("box:/none", "x"), "copy 'box:/none' to 'x'",
                          "No such file or directory")
        self.assert_fails(self.cp("file", "box:/none/file"), "in the guest", "No such file")
        self.assert_fails(self.cp("file", "box:/none/"), "in the guest")
        self.assert_fails(self.cp("box:/etc/passwd", "none/file"), "none/file", "No such file")
        self.assert_fails(self.cp("box:/etc/passwd", "none/"), "'none/'", "Not a directory")
        self.assert_fails(self.cp("box:/etc", "none/etc"), "none/etc", "No such file")
        self.sh("dd if=/dev/zero of=/tmp/big bs=1M count=3 2>/dev/null")
        self.assert_refused(self.cp("file", "gone:/tmp"), "'gone'")
        self.assert_refused(self.cp("file", "other"), "one of SRC and DST is a VM's")
        self.assert_refused(self.cp("box:/a", "box:/b"), "one of SRC and DST is a VM's")
        with self.subTest("no room"):
            self.tool("mkdir", self.here / "full")
            self.tool("mount", "-t", "tmpfs", "-o", "size=1m", "none", self.here / "full")
            try:
                self.assert_fails(self.cp("box:/tmp/big", "full/big"), "tar: ./big: Wrote only")
                self.assertEqual(os.listdir(self.here / "full"), [])
            finally:
                self.tool("umount", self.here / "full")
            self.sh("mkdir /tmp/full && mount -t tmpfs -o size=1m none /tmp/full")
            (self.here / "big").write_bytes(bytes(3 * MIB))
            self.assert_fails(self.cp("big", "box:/tmp/full"), "in the guest", "No space left")
            self.assertEqual(self.sh("ls -A /tmp/full"), "")

    def test_a_guest_that_is_not_trusted(self):
        """Its devices, owners and set-user-ID bits are not the host's."""
        self.sh("mkdir /tmp/bad && cd /tmp/bad && echo x >suid && chown 5:6 suid && chmod 6755 suid && "
                "ln -s /etc link && mknod null c 1 3")
        done = self.cp("box:/tmp/bad", "bad")
        self.assertEqual(done.returncode, 125, done.stderr)
        self.assertIn("null", done.stderr)
        info = (self.here / "bad/suid").stat()
        self.assertEqual((stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid),
                         (0o755, self.host.owner, self.host.owner))
        self.assertFalse(os.path.lexists(self.here / "bad/null"))

    def test_it_is_ended(self):
        self.sh("mkfifo /tmp/fifo; dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null")
        command = self.started("cp", "box:/tmp/big", self.here / "big")
        self.wait_until(lambda: any(name.startswith(".qvm.") for name in os.listdir(self.here)))
        command.signal(signal.SIGINT)
        self.assertEqual(command.wait(), 128 + signal.SIGINT)
        self.assertEqual(os.listdir(self.here), [])
        self.wait_until(lambda: "tar -cf" not in self.sh("ps | grep -v grep"))

    def test_progress(self):
        self.sh("dd if=/dev/zero of=/tmp/big bs=1M count=200 2>/dev/null")
        copy = self.on_terminal("cp", "box:/tmp/big", self.here / "big")
        copy.out.expect(r"qvm: [\d.]+ MiB, [\d.]+ MiB/s", 30)
        self.assertEqual(copy.wait(60), 0)


if __name__ == "__main__":
    harness.main()
