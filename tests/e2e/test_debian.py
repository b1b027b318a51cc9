"""A Debian guest, with systemd, cloud-init, sshd and a compiler: what the demo guest has not."""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import harness
import picture
import vm

SETTLED = 240  # seconds: cloud-init is four programs in Python, at a tenth of their speed

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "launcher/guest"
USER_DATA = """#cloud-config
write_files:
  - path: /root/from-user-data
    content: written
users:
  - default
  - name: somebody
    ssh_authorized_keys: ["{key}"]
"""

SOURCE = """#include <stdio.h>
int main(void) { printf("%d\\n", 6 * 7); return 0; }
"""
MAKEFILE = """check: program
	test "$$(./program)" = 42
program: program.c
"""


class Debian(harness.Test):
    """One boot for all."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.before = picture.Picture(harness.host)
        cls.files = pathlib.Path(tempfile.mkdtemp())
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", cls.files / "key"], check=True)
        key = cls.files / "key.pub"
        (cls.files / "user-data").write_text(USER_DATA.format(key=key.read_text().strip()))
        subprocess.run([harness.QVM, "run", "-q", "-d", "--net", "isolated", "--name", "debian", "--disk-size",
                        "5G", "--user-data", cls.files / "user-data", "--ssh-key", key, "--wait-for", "ssh",
                        "--wait-for", "cloud-init", harness.DEBIAN], check=True, timeout=SETTLED,
                       stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        done = subprocess.run([harness.QVM, "stop", "-t", "60", "debian"], capture_output=True,
                              text=True, timeout=90)
        assert (done.returncode, done.stdout, done.stderr) == (
            0, "debian\n", "qvm: debian: the guest powered down\n"), done
        shutil.rmtree(cls.files)
        difference = picture.difference_to(cls.before, harness.host, harness.GONE)
        assert not difference, difference
        super().tearDownClass()

    def setUp(self):
        """The host is compared at the end of the class: its guest lives on, and writes."""

    def exec(self, *words, seconds=vm.BOOT):
        """A command in the guest: its exit status and output."""
        done = self.qvm("exec", "debian", *words, seconds=seconds)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def ssh(self, *words, seconds=vm.BOOT):
        done = self.qvm("ssh", *words, seconds=seconds)
        return done.returncode, done.stdout, done.stderr

    def client(self, *words, **more):
        """A program that uses ssh, with the configuration that qvm prints."""
        config = self.files / "ssh_config"
        config.write_text(self.succeed("ssh-config", "debian"))
        words = [str(word).replace("CONFIG", str(config)) for word in words]
        return subprocess.run(words, capture_output=True, timeout=vm.BOOT, **more)

    def test_release(self):
        status, release = self.exec("cat", "/etc/os-release")
        self.assertEqual(status, 0)
        self.assertIn("\nID=debian\n", release)
        self.assertIn('\nVERSION_ID="12"\n', release)

    def test_exit_status(self):
        self.assertEqual(self.exec("sh", "-c", "echo out; exit 42"), (42, "out\n"))

    def test_user_and_terminal(self):
        self.assertEqual(self.exec("-u", "somebody", "-w", "/tmp", "sh", "-c", "id -un; pwd; umask"),
                         (0, "somebody\n/tmp\n0022\n"))

    def test_cloud_init(self):
        """What its user wants, and what we do, both came about."""
        status, told = self.exec("cloud-init", "status", "--long")
        self.assertEqual(status, 0, told)
        self.assertIn("status: done", told)
        self.assertIn("DataSourceNoCloud [seed=/dev/vd", told)
        self.assertEqual(self.exec("cat", "/root/from-user-data"), (0, "written"))
        self.assertEqual(self.exec("hostname"), (0, "debian\n"))

    def test_programs_that_awaken_it(self):
        """What tells a clone who it is and when: without commands for what is missing."""
        for program, suffix in (("perl", "pl"), ("python3", "py")):
            with self.subTest(program=program):
                text = (SCRIPTS / f"awaken.{suffix}").read_text()
                option = "-e" if program == "perl" else "-c"
                now = f"{time.time():.9f}".replace(".", " ")
                self.assertEqual(
                    self.exec("unshare", "--mount", "--uts", "sh", "-c",
                              'echo "$1" | "$2" "$3" "$4" "$(uname -m)" 1 && hostname && cat /proc/sys/kernel/random/boot_id',
                              "sh", f"other {now} {'2a' * 32} {program}-id", program, option, text),
                    (0, f"ready\nother\n{program}-id\n"))
                status, seconds = self.exec("date", "+%s")
                self.assertEqual(status, 0)
                self.assertAlmostEqual(float(seconds), time.time(), delta=20)

    def test_the_root_file_system_has_grown(self):
        status, size = self.exec("df", "--output=size", "-B", "1G", "/")
        self.assertEqual(status, 0)
        self.assertIn(int(size.split()[-1]), (5, 6))

    def test_units(self):
        """All that were to start have, sshd among them, with keys of this guest's own."""
        self.assertEqual(self.exec("systemctl", "is-system-running", "--wait", seconds=SETTLED),
                         (0, "running\n"))
        self.assertEqual(self.exec("systemctl", "is-active", "ssh"), (0, "active\n"))
        status, made = self.exec("find", "/etc/ssh", "-name", "ssh_host_*_key", "-newer", "/etc/machine-id")
        self.assertEqual(status, 0)
        self.assertIn("/etc/ssh/ssh_host_ed25519_key\n", made)

    def test_ssh(self):
        self.assertEqual(self.ssh("debian", "--", "id -un; echo to-stderr >&2; exit 7"), (7, "root\n", "to-stderr\n"))
        self.assertEqual(self.ssh("somebody@debian", "id", "-un"), (0, "somebody\n", ""))
        self.assertEqual(self.ssh("debian@debian", "sudo", "id", "-un"), (0, "root\n", ""))
        status, out, said = self.ssh("debian", "--", "-V")  # the guest's shell's, not ssh's
        self.assertEqual((status, out), (2, ""))
        self.assertIn("bash: -V: invalid option", said)
        status, out, said = self.ssh("nobody-there@debian", "true")
        self.assertEqual((status, out), (125, ""))
        self.assertRegex(said, "^qvm: ssh into 'debian': let qvm's key in for 'nobody-there': .*no user")

    def test_ssh_of_others(self):
        """Their own keys, scp and rsync, and nothing in the user's known_hosts."""
        known = pathlib.Path.home() / ".ssh/known_hosts"
        before = known.read_bytes() if known.exists() else None
        source = self.files / "source"
        source.mkdir()
        (source / "file").write_bytes(os.urandom(100000))
        done = self.client("scp", "-q", "-F", "CONFIG", source / "file", "debian:/tmp/file")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        done = self.client("rsync", "-a", "-e", "ssh -F CONFIG", "debian:/tmp/file", self.files / "back")
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual((self.files / "back").read_bytes(), (source / "file").read_bytes())
        done = self.client("sh", "-c", "grep -v IdentityFile CONFIG >CONFIG.2; exec ssh -F CONFIG.2 -l debian -i "
                           f"{self.files / 'key'} debian id -un")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"debian\n", b""))
        self.assertEqual(known.read_bytes() if known.exists() else None, before)

    def test_copies(self):
        tree = self.files / "tree"
        (tree / "a").mkdir(parents=True)
        (tree / "a/file").write_text("text")
        (tree / "a/file").chmod(0o640)
        (tree / "link").symlink_to("a/file")
        self.succeed("cp", "-q", tree, "debian:/srv/", seconds=vm.BOOT)
        self.assertEqual(self.exec("stat", "-c", "%a %F", "/srv/tree/a/file", "/srv/tree/link"),
                         (0, "640 regular file\n777 symbolic link\n"))
        self.succeed("cp", "-q", "debian:/srv/tree", self.files / "copy", seconds=vm.BOOT)
        self.assertEqual((self.files / "copy/a/file").stat().st_mode & 0o777, 0o640)

    def test_forks(self):
        """Sixteen at once, with one address inside; each is reached through its own port."""
        names = self.succeed("fork", "-q", "-n", "16", "--name", "copy", "-p", "0:22", "debian",
                             seconds=vm.BOOT).split()
        self.addCleanup(shutil.rmtree, harness.host.data / "snapshot")
        self.assertEqual(len(names), 16)
        for name in names:
            self.killed_with_test(name)
        states = {each["name"]: each for each in self.ps()}
        for name in names:
            self.assertEqual(states[name]["net"]["address"], "192.168.26.10")
            port = states[name]["ports"][0]["host_port"]
            with socket.create_connection(("127.0.0.1", port), vm.BOOT) as client:
                client.settimeout(vm.BOOT)
                self.assertTrue(client.recv(100).startswith(b"SSH-2.0-"), name)
        script = "cat /proc/sys/kernel/random/boot_id; od -A n -t x4 -N 16 /dev/urandom; hostname; date +%s"
        said = []
        for name in names[:4]:
            done = self.qvm("exec", name, "sh", "-c", script, seconds=vm.BOOT)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            said.append(done.stdout.splitlines())
            self.assertLess(abs(int(said[-1][3]) - time.time()), 5)
        self.assertEqual([lines[2] for lines in said], names[:4])
        for i, what in enumerate(("boot ID", "random numbers")):
            self.assertEqual(len({lines[i] for lines in said}), 4, what)
        self.assertEqual(self.ssh(names[0], "hostname"), (0, f"{names[0]}\n", ""))
        self.assertEqual(self.exec("hostname"), (0, "debian\n"))

    def test_root_is_the_last_partition(self):
        status, root = self.exec("findmnt", "-n", "-o", "SOURCE", "/")
        self.assertEqual(status, 0)
        status, partitions = self.exec("lsblk", "-n", "-r", "-p", "-b", "-x", "START", "-o",
                                       "NAME,TYPE", "/dev/vda")
        self.assertEqual(status, 0)
        self.assertEqual(partitions.splitlines()[-1].split(), [root.strip(), "part"])


class Job(harness.Test):
    def test_as_ci_runs_it(self):
        """Source in, built and tested there, the artefact out, and the status kept."""
        source = self.host.files / "source"
        source.mkdir()
        self.addCleanup(shutil.rmtree, source)
        (source / "program.c").write_text(SOURCE)
        (source / "Makefile").write_text(MAKEFILE)
        result = self.host.files / "result.json"
        self.addCleanup(result.unlink, missing_ok=True)
        options = ["run", "-q", "--net", "none", "-v", f"{source}:/src", "--result", result, harness.DEBIAN, "--"]
        done = self.qvm(*options, "sh", "-c", "cd /src && make -s check && ./program >out && "
                        "sed -i s/42/43/ Makefile && ! make -s check 2>/dev/null || exit 1; exit 3", seconds=SETTLED)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (3, "", ""))
        self.assertEqual((source / "out").read_text(), "42\n")
        self.assertTrue(os.access(source / "program", os.X_OK))
        self.assertIn('"failed": "command"', result.read_text())


if __name__ == "__main__":
    harness.main()
