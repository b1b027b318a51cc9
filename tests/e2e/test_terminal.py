"""The console on a terminal, and what qvm does with its standard streams."""

import fcntl
import os
import signal
import socket
import subprocess
import termios
import time

import harness


class OnTerminal(harness.Test):
    def start_hanging(self, *options):
        vm = self.start_on_terminal("-q", "--net", "none", *options, self.hang)
        vm.out.expect(harness.STARTED, 60)
        return vm

    def assert_restored(self, vm):
        self.assertEqual(termios.tcgetattr(vm.slave), vm.settings)
        self.assertEqual(fcntl.fcntl(vm.slave, fcntl.F_GETFL), vm.flags)

    def test_a_session(self):
        vm = self.start_on_terminal("-q", "--net", "none", "--name", "box", *self.boot_files())
        vm.resize(33, 99)
        vm.wait_for_prompt()
        self.assertTrue(vm.is_raw())
        self.assertEqual(fcntl.fcntl(vm.slave, fcntl.F_GETFL), vm.flags)
        self._sees_size("33 99")
        vm.resize(44, 111)
        self._sees_size("44 111")
        with self.subTest("Ctrl-] asks, and c continues"):
            vm.type("\x1d")
            vm.out.expect(r"\[d\]etach, \[s\]top .*\[k\]ill .*\[c\]ontinue", 30)
            vm.type("c")
            self.assertEqual(vm.sh("echo $((6 * 7))"), ("42\n", 0))
        with self.subTest("^C is the guest's"):
            vm.type("not-a-comm\x03")
            vm.out.expect(r"\^C", 30)
            vm.wait_for_prompt(30)
        vm.type("poweroff\n")
        self.assertEqual(vm.wait(), 0)
        self.assert_restored(vm)

    def _sees_size(self, size):
        """The guest is told through its agent, some time after the terminal changed."""
        deadline = time.monotonic() + 60
        # Looked at from elsewhere: a shell that is told in mid-line writes the line anew.
        look = ("exec", "box", "stty", "-F", "/dev/console", "size")
        while (seen := self.qvm(*look).stdout.strip()) != size:
            self.assertLess(time.monotonic(), deadline, f"the guest's console is {seen}")

    def test_sigterm(self):
        vm = self.start_on_terminal("-q", "--net", "none", *self.boot_files())
        vm.wait_for_prompt()
        with self.subTest("^C ends the guest's job"):
            vm.type("(echo started; exec sleep 1000)\n")
            vm.out.expect(r"started[\r\n]", 30)
            vm.type("\x03")
            vm.wait_for_prompt(10)
        os.kill(vm.pid, signal.SIGTERM)
        self.assertEqual(vm.wait(), 143)
        self.assert_restored(vm)

    def test_ctrl_bracket_kills(self):
        vm = self.start_hanging()
        self.assertTrue(vm.is_raw())
        vm.type("\x1d")
        vm.out.expect(r"\[k\]ill", 30)
        vm.type("k")
        self.assertEqual(vm.wait(), 137)  # as after `qvm kill`
        self.assert_restored(vm)

    def test_timeout(self):
        vm = self.start_hanging("--timeout", "3s")
        self.assertTrue(vm.is_raw())
        self.assertEqual(vm.wait(), 124)
        self.assert_restored(vm)
        # The message stands on a line of its own, at the left.
        self.assertRegex(vm.out.text, r"\n\r?qvm: --timeout: .*\r\n\[status 124\]")

    def test_qemu_dies(self):
        vm = self.start_hanging()
        self.assertTrue(vm.is_raw())
        os.kill(vm.child("qemu"), signal.SIGKILL)
        self.assertEqual(vm.wait(), 123)
        self.assert_restored(vm)

    def test_error(self):
        vm = self.start_on_terminal("-q", "--net", "none", "--qemu-arg=-no-such-option", self.hang)
        self.assertEqual(vm.wait(), 125)
        self.assert_restored(vm)


class Streams(harness.Test):
    def start_fast(self, **more):
        return self.start("-q", "--net", "none", *self.boot_files(), **more)

    def finish(self, vm):
        """Ends a VM whose stdin is not ours to type on."""
        vm.signal(signal.SIGTERM)
        self.assertEqual(vm.wait(), 143)

    def test_stdin_is_empty(self):
        """/dev/null is no reason to end: a guest may do its work without being told."""
        vm = self.start_fast(stdin=subprocess.DEVNULL)
        vm.wait_for_prompt()
        self.finish(vm)

    def test_stdin_is_a_file(self):
        script = self.host.files / "script"
        script.write_text("echo sum $((40 + 2))\npoweroff\n")
        self.addCleanup(script.unlink)
        with open(script, "rb") as file:
            vm = self.start_fast(stdin=file)
        self.assertEqual(vm.wait(120), 0)
        self.assertIn("sum 42", vm.out.text)

    def test_pipes_stay_blocking(self):
        """The flags belong to the open file, which qvm shares with whoever gave it."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        before = fcntl.fcntl(reading, fcntl.F_GETFL)
        vm = self.start("-q", "--net", "none", self.hang, stdin=reading)
        output = fcntl.fcntl(vm.process.stdout.fileno(), fcntl.F_GETFL)
        vm.out.expect(harness.STARTED, 60)
        self.assertEqual(fcntl.fcntl(reading, fcntl.F_GETFL), before)
        self.interrupt(vm)
        self.assertEqual(fcntl.fcntl(reading, fcntl.F_GETFL), before)
        self.assertEqual(fcntl.fcntl(vm.process.stdout.fileno(), fcntl.F_GETFL), output)

    def test_a_socket_is_given_back_as_it_was(self):
        """A socket cannot be opened anew; its flags are put back."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        vm = self.start("-q", "--net", "none", self.hang, stdin=theirs)
        vm.out.expect(harness.STARTED, 60)
        self.interrupt(vm)
        self.assertFalse(fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK)

    def test_reader_of_stdout_goes_away(self):
        """As in `qvm run ... | head -c 1`."""
        head = subprocess.Popen(["head", "-c", "1"], stdin=subprocess.PIPE,
                                stdout=subprocess.DEVNULL)
        self.addCleanup(head.wait, 30)
        qvm = subprocess.Popen([harness.QVM, "run", "-q", "--net", "nat", self.babble],
                               stdin=subprocess.DEVNULL, stdout=head.stdin, cwd=self.host.cwd)
        self.addCleanup(qvm.wait, 30)
        self.addCleanup(qvm.kill)
        head.stdin.close()
        self.assertEqual(qvm.wait(60), 128 + signal.SIGPIPE)


if __name__ == "__main__":
    harness.main()
