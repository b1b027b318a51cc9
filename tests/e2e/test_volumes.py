"""--volume: directories of the host in the guest."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

import detached
import harness


def virtiofsds(pid):
    """Those that this process started, and theirs."""
    out = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,comm="], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in out.splitlines()]
    found, parents = [], {str(pid)}
    while children := {row[0] for row in rows if row[1] in parents and row[2] == "virtiofsd"}:
        found += children
        parents = children
    return [int(child) for child in found]


class Volumes(detached.Test):
    def setUp(self):
        super().setUp()
        self.directory = tempfile.mkdtemp(dir=self.host.files)
        self.host.give(self.directory)
        self.addCleanup(shutil.rmtree, self.directory)

    def in_guest(self, command, *volumes):
        words = [word for volume in volumes for word in ("-v", volume)]
        return self.qvm("run", "-q", "--net", "none", *self.boot_files(), *words, "--", "sh", "-c", command,
                        seconds=60)

    def path(self, name):
        return os.path.join(self.directory, name)

    def test_both_ways(self):
        os.mkdir(self.path("with space"))
        self.host.give(self.path("with space"))
        with open(self.path("with space/in"), "w") as file:
            file.write("from the host\n")
        done = self.in_guest("cd /a/b; cat in; echo 'from the guest' >out; ln -s in link; chmod 751 .; "
                             "chown 12:34 out; head -c 1000000 /dev/zero >large; cat /two/in",
                             f"{self.path('with space')}:/a/b", f"{self.path('with space')}:/two:ro")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "from the host\n" * 2, ""))
        with open(self.path("with space/out")) as file:
            self.assertEqual(file.read(), "from the guest\n")
        status = os.stat(self.path("with space/out"))
        self.assertEqual((status.st_uid, status.st_gid, status.st_mode & 0o777),
                         (self.host.id_of(12), self.host.id_of(34), 0o644))
        self.assertEqual(os.readlink(self.path("with space/link")), "in")
        self.assertEqual(os.stat(self.path("with space/large")).st_size, 1000000)
        self.assertEqual(os.stat(self.path("with space")).st_mode & 0o777, 0o751)

    def test_read_only_is_the_hosts_word(self):
        done = self.in_guest("mount -o remount,rw /src && echo x >/src/file", f"{self.directory}:/src:ro")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("Read-only file system", done.stderr)
        self.assertEqual(os.listdir(self.directory), [])

    def test_the_directory_that_is_meant(self):
        """Whatever its name is, and whatever links lead there."""
        for name in ("a\\b", "ab", "with, comma", "deep/er"):
            os.makedirs(self.path(name))
            with open(self.path(f"{name}/me"), "w") as file:
                file.write(name)
        os.symlink("deep/er", self.path("link"))
        with open(self.path("deep/me"), "w") as file:
            file.write("deep")
        done = self.in_guest("cat /0/me /1/me /2/me /3/me /2/sub/me; ls /2/sub", *(
            f"{self.path(name)}:/{number}" for number, name in
            enumerate(("a\\b", "with, comma", "link", "link/.."))), f"{self.path('ab')}:/2/sub")
        self.assertEqual((done.stdout, done.stderr), ("a\\bwith, commadeep/erdeepabme\n", ""))

    def test_refused(self):
        for volume, why in ((self.path("none") + ":/src", "--volume '.*/none': No such file or directory"),
                            (f"{harness.QVM}:/src", "--volume '.*': is not a directory"),
                            (f"{self.directory}:src", "--volume '.*': 'src' is no directory below"),
                            ("/:/src", "--volume '/': the host's root"),
                            (self.directory, "--volume '.*': must be HOSTDIR:GUESTDIR")):
            with self.subTest(volume):
                self.assert_refused(self.qvm("run", "--net", "none", "-v", volume, self.demo), why)

    def test_a_mount_that_the_guest_refuses(self):
        done = self.in_guest("true", f"{self.directory}:/proc/none")
        self.assertEqual((done.returncode, done.stdout), (125, ""))
        self.assertRegex(done.stderr, "^qvm: mount in the guest: .*/proc/none")

    def test_it_comes_back_with_the_guest(self):
        guest = self.start_detached("--net", "none", *self.boot_files(), "-v", f"{self.directory}:/src")
        self.assertEqual(self.succeed("exec", guest.name, "sh", "-c", "echo 1 >/src/1; ls /src"), "1\n")
        self.assertEqual(self.qvm("restart", "-t", "0", guest.name, seconds=60).returncode, 0)
        self.assertEqual(self.succeed("exec", guest.name, "ls", "/src", seconds=60), "1\n")
        with self.subTest("and goes with its virtiofsd"):
            waits = subprocess.Popen([harness.QVM, "wait", guest.name], stdout=subprocess.PIPE, text=True)
            detached.wait_for(lambda: "do_epoll_wait" in pathlib.Path(f"/proc/{waits.pid}/wchan").read_text())
            for pid in virtiofsds(guest.pid):
                with contextlib.suppress(ProcessLookupError):  # one takes the other along
                    os.kill(pid, signal.SIGKILL)
            self.assertEqual(waits.communicate(timeout=60)[0].strip(), "123")

    def test_nothing_is_left(self):
        guest = self.start_detached("--net", "none", *self.boot_files(), "-v", f"{self.directory}:/src")
        pids = virtiofsds(guest.pid)
        self.assertGreaterEqual(len(pids), 1)
        os.kill(guest.pid, 9)
        detached.wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))

    def test_created(self):
        name = self.create("--net", "none", *self.boot_files(), "-v", f"{self.directory}:/src:ro", self.demo)
        self.succeed("start", "-q", name)
        self.assertEqual(self.succeed("exec", name, "sh", "-c", "grep -c 'virtiofs ro' /proc/mounts",
                                      seconds=60), "1\n")


if __name__ == "__main__":
    harness.main()
