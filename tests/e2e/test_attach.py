"""qvm console: terminals that come and go, on the console of a VM that stays."""

import fcntl
import os
import signal
import subprocess
import termios
import time

import harness

LEAVE = "\x1d"  # Ctrl-]


class Attach(harness.Test):
    def boot_detached(self):
        self.detach("--net", "none", "--name", "web", *self.boot_files())
        shell = self.attach("web")
        shell.wait_for_prompt()
        shell.end()

    def assert_restored(self, terminal):
        self.assertEqual(termios.tcgetattr(terminal.slave), terminal.settings)
        self.assertEqual(fcntl.fcntl(terminal.slave, fcntl.F_GETFL), terminal.flags)

    def console(self):
        """`qvm console` on a terminal of its own, up to its greeting."""
        terminal = self.on_terminal("console", "web")
        terminal.out.expect("attached to 'web'[^\n]*Ctrl-] leaves", 30)
        self.wait_until(terminal.is_raw)
        return terminal

    def leave(self, terminal):
        terminal.type(LEAVE)
        self.assertEqual(terminal.wait(), 0)
        self.assert_restored(terminal)

    def test_sessions(self):
        self.boot_detached()
        with self.subTest("one terminal"):
            first = self.console()
            first.out.expect("demo# ", 30)  # what is on the console's last line is shown
            self.assertEqual(first.sh("echo $((6 * 7))"), ("42\n", 0))
            first.type("not-a-comm\x03")
            first.out.expect(r"\^C", 30)
            first.wait_for_prompt(30)
        with self.subTest("a second one sees, and does not write"):
            second = self.console()
            self.assertIn("to watch until", second.out.text)
            second.type("echo from-the-second\n")
            time.sleep(0.5)
            self.assertEqual(first.sh("echo from-$((40 + 1))"), ("from-41\n", 0))
            second.out.expect("from-41", 30)
            self.assertNotIn("from-the-second", first.out.text)
        with self.subTest("until the first leaves"):
            self.leave(first)
            self.assertIn("left 'web', which goes on", first.out.text)
            self.assertEqual([vm["state"] for vm in self.ps()], ["running"])
            second.out.skip()
            second.type("\n")
            second.wait_for_prompt(30)
            self.assertEqual(second.sh("echo from-$((40 + 2))"), ("from-42\n", 0))
        with self.subTest("the guest's terminal has this one's size"):
            second.resize(33, 99)
            self.wait_until(lambda: second.sh("stty size")[0].strip() == "33 99", 60)
        with self.subTest("SIGTERM"):
            os.kill(second.pid, signal.SIGTERM)
            self.assertEqual(second.wait(), 143)
            self.assert_restored(second)
        with self.subTest("SIGKILL cannot restore, and the VM goes on"):
            third = self.console()
            os.kill(third.pid, signal.SIGKILL)
            self.assertEqual(third.wait(), 137)
        with self.subTest("piped"):
            piped = self.started("console", "web")
            piped.type("\n")
            piped.wait_for_prompt(30)
            self.assertEqual(piped.sh("echo from-$((40 + 3))"), ("from-43\n", 0))
            self.assertEqual(piped.err.text, "")
            piped.type(f"{LEAVE}echo from-$((40 + 4))\n")  # a key as any other there
            piped.out.expect(r"from-44", 30)
            piped.process.stdin.close()
            piped.process.stdin = None
            piped.signal(signal.SIGINT)
            self.assertEqual(piped.wait(), 130)
        with self.subTest("commands from a pipe, to the guest's end"):
            last = subprocess.run(
                ["sh", "-c", 'echo "echo sum \\$((40 + 5)); poweroff" | "$0" console web',
                 harness.QVM], capture_output=True, text=True, timeout=60)
            self.assertEqual((last.returncode, last.stderr), (0, "qvm: VM 'web' ended\n"))
            self.assertIn("sum 45", last.stdout)
        self.wait_until(lambda: self.ps() == [])

    def test_the_vm_ends_under_a_terminal(self):
        self.detach("--net", "none", "--name", "web", self.hang)
        terminals = [self.console() for _ in range(2)]
        self.succeed("kill", "web")
        for terminal in terminals:
            self.assertEqual(terminal.wait(), 0)
            self.assert_restored(terminal)
            self.assertRegex(terminal.out.text, r"\n\r?qvm: VM 'web' ended\r\n\[status 0\]")

    def test_a_terminal_that_does_not_read(self):
        """It may lose what it does not read; the guest does not wait for it."""
        self.detach("--net", "none", "--name", "web", self.babble)
        log = self.host.run / "web" / "console.log"
        stopped = self.started("console", "web")
        stopped.out.expect(harness.STARTED, 30)
        stopped.signal(signal.SIGSTOP)
        size = log.stat().st_size
        self.wait_until(lambda: log.stat().st_size > size + 200000, 60)
        stopped.signal(signal.SIGCONT)
        self.succeed("kill", "web")
        self.assertEqual(stopped.wait(), 0)

    def test_a_terminal_that_was_stopped(self):
        """Ctrl-S holds up neither the log nor others."""
        terminal = self.start_on_terminal("-q", "--net", "none", "--name", "web",
                                          *self.boot_files())
        terminal.wait_for_prompt()
        termios.tcflow(terminal.slave, termios.TCOOFF)
        other = self.attach("web")
        terminal.type("for i in $(seq 2000); do echo line-$i; done\n")
        other.out.expect("line-2000", 60)
        self.wait_until(lambda: "line-2000" in self.succeed("logs", "web"))
        self.assertNotIn("line-2000", terminal.out.text)
        termios.tcflow(terminal.slave, termios.TCOON)
        terminal.out.expect("line-2000", 60)
        terminal.type("poweroff\n")
        self.assertEqual(terminal.wait(), 0)

    def test_more_consoles_than_there_may_be(self):
        self.detach("--net", "none", "--name", "web", self.hang)
        consoles = [self.attach("web") for _ in range(64)]
        done = self.qvm("console", "web")
        self.assertEqual(done.returncode, 125)
        self.assertRegex(done.stderr, "^qvm: VM 'web': goes on, but has too many consoles")
        self.assertEqual(len(consoles), 64)
        self.assertEqual([vm["state"] for vm in self.ps()], ["running"])

    def test_a_reader_that_has_seen_enough(self):
        self.detach("--net", "none", "--name", "web", self.babble)
        done = subprocess.run(["bash", "-c", '"$0" console web </dev/null | head -c 1 >/dev/null; '
                               'echo "${PIPESTATUS[0]}"', harness.QVM],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual((done.stdout, done.stderr), ("141\n", ""))

    def test_detach_from_a_foreground_run(self):
        terminal = self.start_on_terminal("--net", "none", "--name", "web", *self.boot_files())
        self.killed_with_test("web")
        terminal.wait_for_prompt()
        terminal.sh("echo kept >/tmp/kept")
        supervisor = terminal.supervisor
        terminal.type(LEAVE)
        terminal.out.expect(r"\[d\]etach, \[s\]top .*\[k\]ill .*\[c\]ontinue", 30)
        terminal.type("d")
        self.assertEqual(terminal.wait(), 0)
        self.assert_restored(terminal)
        self.assertRegex(terminal.out.text, "\n\r?qvm: detached; 'qvm console web' comes back\r\n")
        with self.subTest("it has left the terminal for good"):
            self.assertEqual(os.getsid(supervisor), supervisor)
            terminals = [os.readlink(f"/proc/{supervisor}/fd/{fd}")
                         for fd in os.listdir(f"/proc/{supervisor}/fd")]
            self.assertEqual([path for path in terminals if path.startswith("/dev/pts")], [])
            self.assertEqual([(vm["pid"], vm["state"]) for vm in self.ps()],
                             [(supervisor, "running")])
            terminal.end()  # its SIGHUP is nobody's
        with self.subTest("and comes back"):
            back = self.console()
            back.type("\n")
            back.wait_for_prompt(30)
            self.assertEqual(back.sh("cat /tmp/kept"), ("kept\n", 0))
            self.leave(back)
        done = self.qvm("stop", "web")
        self.assertEqual(done.stderr, "qvm: web: the guest powered down\n")

    def test_console_beside_a_foreground_run(self):
        """The terminal that the VM was started from writes; the other one watches."""
        terminal = self.start_on_terminal("-q", "--net", "none", "--name", "web",
                                          *self.boot_files())
        terminal.wait_for_prompt()
        other = self.console()
        other.type("echo from-the-other\n")
        time.sleep(0.5)
        self.assertEqual(terminal.sh("echo from-$((40 + 1))"), ("from-41\n", 0))
        other.out.expect("from-41", 30)
        self.assertNotIn("from-the-other", terminal.out.text)
        with self.subTest("until that is left"):
            terminal.type(f"{LEAVE}d")
            self.killed_with_test("web")
            self.assertEqual(terminal.wait(), 0)
            other.out.skip()
            other.type("\n")
            other.wait_for_prompt(30)
            self.assertEqual(other.sh("echo from-$((40 + 2))"), ("from-42\n", 0))
        self.leave(other)

    def test_a_signal_to_all_of_a_terminal(self):
        """As when it is closed: the supervisor has it from the kernel or the shell, and from the
        process that stands in for it. It is one, and the guest is asked."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number.name):
                terminal = self.start_on_terminal("-q", "--net", "none", *self.boot_files())
                terminal.wait_for_prompt()
                for pid in (terminal.supervisor, terminal.pid):
                    os.kill(pid, number)
                    time.sleep(0.03)
                self.assertEqual(terminal.wait(), 128 + number)
                self.assertIn("Power down", terminal.out.text)
                self.assert_restored(terminal)

    def test_a_job_that_is_stopped_and_goes_on(self):
        terminal = self.start_on_terminal("-q", "--net", "none", "--name", "web", self.hang)
        self.wait_until(terminal.is_raw)
        parent, supervisor = terminal.pid, terminal.supervisor
        os.kill(supervisor, signal.SIGSTOP)
        self.wait_until(lambda: self._state(parent) == "T")
        for pid in (supervisor, parent):  # as fg does, to the group
            os.kill(pid, signal.SIGCONT)
        self.wait_until(lambda: self._state(parent) == "S")
        terminal.type(f"{LEAVE}k")
        self.assertEqual(terminal.wait(), 137)
        self.assert_restored(terminal)

    @staticmethod
    def _state(pid):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]

    def test_the_stand_in_is_killed(self):
        """What the user started is gone: so is its VM, and nothing stays."""
        terminal = self.start_on_terminal("-q", "--net", "none", "--name", "web", self.hang)
        self.wait_until(terminal.is_raw)
        os.kill(terminal.pid, signal.SIGKILL)
        self.assertEqual(terminal.wait(), 137)
        self.wait_until(lambda: self.ps() == [])


if __name__ == "__main__":
    harness.main()
