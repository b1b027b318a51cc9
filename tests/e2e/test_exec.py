"""qvm exec: a command in the guest, as if it ran here."""

import hashlib
import os
import random
import signal
import subprocess
import termios
import time
import unittest

from corpus import CORPUS, INPUT, assert_same, on_host
import harness
import vm

# Each is run by sh -c, here and in the guest.
MANY = 20
MIB = 1024 * 1024


class Exec(harness.Test):
    def setUp(self):
        super().setUp()
        self.box = self.detach("--name", "box", "--net", "none", *self.boot_files())

    def exec(self, *words, stdin=subprocess.DEVNULL, seconds=60):
        """As bytes."""
        command = [harness.QVM, "exec", *map(str, words)]
        if isinstance(stdin, bytes):
            return subprocess.run(command, input=stdin, capture_output=True, timeout=seconds)
        return subprocess.run(command, stdin=stdin, capture_output=True, timeout=seconds)

    def test_corpus(self):
        """Byte for byte what it is on the host."""
        for command in CORPUS:
            with self.subTest(command):
                words = ["sh", "-c", command]
                assert_same(self, self.exec("-i", "-w", "/", "-e", "A=1 2", "-e", "B=$x", "box",
                                            "--", *words, stdin=INPUT), on_host(words))
        with self.subTest("without -i there is nothing to read"):
            done = self.exec("box", "cat", stdin=INPUT)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
        with self.subTest("variables"):
            done = self.exec("-e", "PATH", "-e", "NOT_SET_HERE", "-e", "EMPTY=", "box", "sh", "-c",
                             'echo "$PATH ${NOT_SET_HERE-unset} ${EMPTY-unset}"')
            self.assertEqual(done.stdout.decode(), f"{os.environ['PATH']} unset \n")
        with self.subTest("variables with any name"):
            names = ("tag", "secret", "directory", "user", "terminal", "session", "command", "become",
                     "port", "name", "x", "tries", "login", "account", "home", "consoles", "HOME", "IFS")
            options = [word for name in names for word in ("-e", f"{name}=/{name}")]
            done = self.exec(*options, "box", "env")
            for name in names:
                self.assertIn(f"{name}=/{name}\n", done.stdout.decode())
            done = self.exec("-e", "PATH=/none", "box", "/bin/busybox", "echo", "x")
            self.assertEqual((done.returncode, done.stdout), (0, b"x\n"))
            self.assertEqual(self.exec("-w", "/", "box", "pwd").stderr, b"")  # has its streams yet
        with self.subTest("words"):
            words = ["", " ", "a b", "'", '"', "$HOME", "*", "\\", "\n", "-n", "--", "é", "\udcff\udce9"]
            done = self.exec("box", "--", "printf", "[%s]", *words)
            self.assertEqual(done.stdout, os.fsencode("".join(f"[{word}]" for word in words)))
        with self.subTest("what is not there"):
            done = self.exec("box", "no-such-command")
            self.assertEqual((done.returncode, done.stdout, done.stderr),
                             (127, b"", b"sh: no-such-command: not found\n"))
            self.assertEqual(self.exec("box", "/etc/profile").returncode, 126)
            self.assertEqual(self.exec("-w", "/none", "box", "true").returncode, 126)
        with self.subTest("much"):
            self._much()
        with self.subTest("nothing stays"):
            self.wait_until(lambda: not self._ports())
            self.assertEqual(self.exec("box", "ps").stdout.count(b". /proc/self/fd/0"), 1)

    def _ports(self):
        """QEMU's chardevs of commands."""
        listed = self.succeed("qmp", "box", "query-chardev")
        return [line for line in listed.splitlines() if '"exec-' in line and '"label"' in line]

    def _much(self):
        data = random.Random(1).randbytes(16 * MIB)
        digest = hashlib.sha256(data).hexdigest()
        done = self.exec("-i", "box", "sha256sum", stdin=data)
        self.assertEqual(done.stdout.split()[0].decode(), digest)
        done = self.exec("-i", "box", "sh", "-c", "tee /tmp/data | cat; cat /tmp/data >&2",
                         stdin=data)
        self.assertEqual(hashlib.sha256(done.stdout).hexdigest(), digest)
        self.assertEqual(hashlib.sha256(done.stderr).hexdigest(), digest)

    def test_a_slow_reader_loses_nothing(self):
        """The command is long over when QEMU still holds some of its output: up to 4 MiB in the
        port's ring, and what the sockets hold."""
        for mib in (1, 2, 3, 4, 6):
            with self.subTest(f"{mib} MiB"):
                done = subprocess.run(["sh", "-c", '"$@" | (sleep 1; wc -c)', "sh", harness.QVM,
                                       "exec", "box", "dd", "if=/dev/zero", "bs=64k",
                                       f"count={mib * 16}"], capture_output=True, timeout=60)
                self.assertEqual(int(done.stdout), mib * MIB)

    def test_several_at_once(self):
        running = [self.started("exec", "-i", "box", "sh", "-c",
                                f"read -r line; echo {i} $line; exit {i}") for i in range(MANY)]
        for i, each in enumerate(running):
            each.type(f"line {i}\n")
        for i, each in enumerate(running):
            self.assertEqual(each.wait(60), i, each.err.text)
            self.assertEqual(each.out.text, f"{i} line {i}\n")
        self.wait_until(lambda: not self._ports())

    def test_signals(self):
        """They are the command's; a second one is ours."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number.name):
                command = self.started("exec", "box", "sh", "-c", "echo up; exec sleep 1000")
                command.out.expect("up", 60)
                command.signal(number)
                self.assertEqual(command.wait(), 128 + number)
        with self.subTest("one that is caught"):
            command = self.started("exec", "box", "sh", "-c",
                                   "trap 'echo caught; exit 9' INT; echo up; "
                                   "while :; do sleep 0.1; done")
            command.out.expect("up", 60)
            command.signal(signal.SIGINT)
            self.assertEqual(command.wait(), 9)
            self.assertIn("caught", command.out.text)
        with self.subTest("one that is ignored, twice"):
            command = self.started("exec", "box", "sh", "-c",
                                   "trap '' TERM; echo up; while :; do sleep 0.1; done")
            command.out.expect("up", 60)
            command.signal(signal.SIGTERM)
            time.sleep(0.3)
            command.signal(signal.SIGTERM)
            self.assertEqual(command.wait(), 128 + signal.SIGTERM)
        with self.subTest("whoever is killed takes its command along"):
            command = self.started("exec", "box", "sh", "-c", "echo up; exec sleep 777")
            command.out.expect("up", 60)
            command.signal(signal.SIGKILL)
            command.wait()
            self.wait_until(lambda: b"sleep 777" not in self.exec("box", "ps").stdout)
        with self.subTest("also while it is being started, and what it has started"):
            for i in range(8):
                command = self.started("exec", "box", "sh", "-c", "sleep 779; true")
                time.sleep(0.02 * i)
                command.signal(signal.SIGKILL)
                command.wait()
            self.wait_until(lambda: b"sleep 779" not in self.exec("box", "ps").stdout)
        with self.subTest("a signal is for all that it has started"):
            command = self.started("exec", "box", "sh", "-c", "echo up; sleep 776; echo no")
            command.out.expect("up", 60)
            command.signal(signal.SIGINT)
            self.assertEqual(command.wait(), 128 + signal.SIGINT)
            self.wait_until(lambda: b"sleep 776" not in self.exec("box", "ps").stdout)
        with self.subTest("a reader that is gone"):
            done = subprocess.run(["sh", "-c", '"$@" | head -n 1', "sh", harness.QVM, "exec", "box",
                                   "yes"], capture_output=True, timeout=60)
            self.assertEqual((done.stdout, done.stderr), (b"y\n", b""))
            self.wait_until(lambda: b" yes" not in self.exec("box", "ps").stdout)

    def test_a_terminal(self):
        session = self.on_terminal("exec", "-it", "box", "sh")
        session.resize(33, 99)
        session.wait_for_prompt(60)
        self.assertTrue(session.is_raw())
        terminal = session.sh("tty")[0]
        self.assertRegex(terminal, "^/dev/hvc[0-7]\n$")
        self.assertEqual(session.sh("echo $TERM"), (os.environ.get("TERM", "") + "\n", 0))
        session.resize(44, 111)
        # Looked at from elsewhere: a shell that is told in mid-line writes the line anew.
        self.wait_until(lambda: self.exec("box", "stty", "-F", terminal.strip(), "size").stdout ==
                        b"44 111\n")
        session.type("\n")
        session.wait_for_prompt(30)
        with self.subTest("^C and ^Z are the guest's"):
            for key in "\x03", "\x1a":
                session.type("sh -c 'echo start; exec sleep 1000'\n")
                session.out.expect("\nstart\r", 30)
                session.type(key)
                session.wait_for_prompt(30)
            self.assertIn("Stopped", session.sh("jobs")[0])
        with self.subTest("two at once"):
            other = self.exec("-t", "box", "sh", "-c", "tty; exit 4")
            self.assertEqual(other.returncode, 4)
            self.assertRegex(other.stdout.decode(), "^/dev/hvc[0-7]\r\n$")
            self.assertNotIn(terminal.strip(), other.stdout.decode())
            self.assertEqual(session.sh("tty"), (terminal, 0))
        session.type("kill -9 %1; wait; exit 6\n")
        self.assertEqual(session.wait(), 6)
        self.assertEqual(termios.tcgetattr(session.slave), session.settings)
        with self.subTest("whoever is killed takes its session along"):
            session = self.on_terminal("exec", "-it", "box", "sh", "-c", "echo up; exec sleep 778")
            session.out.expect("up", 60)
            os.kill(session.pid, signal.SIGKILL)
            self.assertEqual(session.wait(), 128 + signal.SIGKILL)
            self.wait_until(lambda: b"sleep 778" not in self.exec("box", "ps").stdout)
        with self.subTest("not without one"):
            self.assert_refused(self.qvm("exec", "-it", "box", "true"), "--tty: stdin is no terminal")
        self.wait_until(lambda: not self._ports())

    def test_users(self):
        self.exec("box", "sh", "-c", "echo dev:x:1000:1000::/tmp:/bin/sh >>/etc/passwd; "
                  "echo dev:x:1000: >>/etc/group")
        done = self.exec("-u", "dev", "-e", "A=1 2", "box", "sh", "-c",
                         'echo "$(id -un) $HOME $A $1"; exit 3', "sh", "a b")
        self.assertEqual((done.returncode, done.stdout), (3, b"dev /tmp 1 2 a b\n"))
        done = self.exec("-u", "none", "box", "true")
        self.assertEqual((done.returncode, done.stderr), (126, b"the guest has no user 'none'\n"))
        command = self.started("exec", "-u", "dev", "box", "sh", "-c", "echo up; exec sleep 1000")
        command.out.expect("up", 60)
        command.signal(signal.SIGINT)
        self.assertEqual(command.wait(), 128 + signal.SIGINT)

    def test_a_client_that_left_during_the_boot(self):
        """Its command is not started any more."""
        client = self.started("exec", "box", "touch", "/tmp/started")
        time.sleep(0.5)
        client.signal(signal.SIGTERM)
        self.assertEqual(client.wait(), 128 + signal.SIGTERM)
        done = self.exec("box", "sh", "-c", "sleep 1; ls /tmp")
        self.assertEqual((done.returncode, done.stdout), (0, b""))

    def test_what_goes_away_meanwhile(self):
        with self.subTest("the guest restarts"):
            command = self.started("exec", "box", "sh", "-c", "echo up; sleep 1000")
            command.out.expect("up", 60)
            self.succeed("exec", "box", "reboot", seconds=60)
            self.assertEqual(command.wait(60), 123)
            self.assertEqual(command.errors(), ["qvm: exec in 'box': the guest restarted"])
            done = self.exec("box", "echo", "again")
            self.assertEqual((done.stdout, done.stderr), (b"again\n", b""))
        with self.subTest("the agent ends: what runs goes on, and nothing else can"):
            command = self.started("exec", "box", "sh", "-c", "echo up; sleep 3; echo end; exit 4")
            command.out.expect("up", 60)
            self.succeed("exec", "box", "sh", "-c", "kill $(cat /run/qemu-ga.pid)")
            self.assertEqual(command.wait(), 4)
            self.assertIn("end", command.out.text)
            self.assert_refused(self.qvm("exec", "box", "true", seconds=60), "no guest agent answers")
            self.assertEqual(self.qvm("restart", "-t", "1", "box", seconds=60).returncode, 0)
            self.assertEqual(self.exec("box", "echo", "again").stdout, b"again\n")
        with self.subTest("the VM ends"):
            command = self.started("exec", "box", "sh", "-c", "echo up; sleep 1000")
            command.out.expect("up", 60)
            self.succeed("kill", "box")
            self.assertEqual(command.wait(), 123)
            self.assertEqual(len(command.errors()), 1, command.err.text)
        self.assert_refused(self.qvm("exec", "box", "true"), "'box'")

    def test_a_guest_without_ports(self):
        """The agent alone: what it takes and keeps is limited, and said."""
        self.exec("box", "umount", "-l", "/sys")
        note = (b"qvm: the guest has no shell, or no serial ports for a command's streams: output "
                b"comes at its end\n")
        done = self.exec("-i", "box", "sh", "-c", "cat; echo err >&2; exit 3", stdin=INPUT)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (3, INPUT, note + b"err\n"))
        done = self.exec("box", "sh", "-c", "kill -KILL $$")
        self.assertEqual((done.returncode, done.stdout), (137, b""))
        self.assertEqual(self.exec("box", "no-such-command").returncode, 127)
        self.assertEqual(self.exec("box", "/etc/profile").returncode, 126)
        done = self.exec("box", "sh", "-c", "yes | head -c 17000000")
        self.assertEqual(len(done.stdout), 16 * MIB)
        self.assertIn(b"kept 16 MiB", done.stderr)
        command = self.started("exec", "box", "sleep", "1000")
        self.wait_until(lambda: b"sleep 1000" in self.exec("box", "ps").stdout)
        command.signal(signal.SIGTERM)
        self.assertEqual(command.wait(), 128 + signal.SIGTERM)
        with self.subTest("clients that are killed leave nothing in the supervisor"):
            pid = self.ps()[0]["pid"]
            count = len(os.listdir(f"/proc/{pid}/fd"))
            for words in (("-i", "box", "cat"), ("box", "sh", "-c", "yes | head -c 9000000")) * 3:
                client = self.started("exec", *words)
                time.sleep(0.5)
                client.signal(signal.SIGKILL)
                client.wait()
            self.wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= count)
        self.assertEqual(self.exec("-w", "/", "box", "true").returncode, 125)
        self.assertEqual(self.exec("-t", "box", "true").returncode, 125)
        self.wait_until(lambda: not self._ports())

    def test_bad_use(self):
        self.assert_refused(self.qvm("exec", "box"), "COMMAND is missing", "qvm exec --help")
        self.assert_refused(self.qvm("exec", "none", "true"), "'none'")
        self.assert_refused(self.qvm("exec", "-e", "=x", "box", "true"), "--env '=x'")
        self.assert_refused(self.qvm("exec", "box", "x" * 70000, "y" * 70000), "too long")


class WithoutAgent(harness.Test):
    @unittest.skipUnless(os.environ.get("QVM_LONG"), "half a minute: QVM_LONG=1")
    def test_no_agent(self):
        self.detach("--name", "mute", "--net", "none", "-m", "64M", self.hang)
        self.assert_refused(self.qvm("exec", "mute", "true", seconds=60), "no guest agent answers")


if __name__ == "__main__":
    harness.main()
