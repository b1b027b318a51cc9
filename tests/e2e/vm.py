"""Running qvm as its users do: with pipes, or on a terminal."""

import fcntl
import os
import pathlib
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import threading
import time

BOOT = 120  # seconds: a guest's boot without KVM on a host that does other things as well
SOON = 30  # seconds for what takes no boot
PROMPT = "demo# "
# The end of a line as the guest's shell echoes it, which breaks it at the console's width.
ECHO = r"[\r\n]*".join(map(re.escape, "echo =$?="))


class Stream:
    """What comes out of a descriptor, collected by a thread, to be waited for."""

    def __init__(self, fd):
        self.text = ""
        self.ended = False
        self._fd = fd
        self._at = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self):
        while True:
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # EIO: the other side of a terminal is closed
                data = b""
            with self._changed:
                self.text += data.decode("utf-8", "replace")
                self.ended = not data
                self._changed.notify_all()
            if not data:
                return

    def expect(self, pattern, seconds):
        """Waits for a match after the last one's end."""
        compiled = re.compile(pattern, re.DOTALL)
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                match = compiled.search(self.text, self._at)
                if match:
                    self._at = match.end()
                    return match
                if self.ended or not self._changed.wait(max(0, deadline - time.monotonic())):
                    end = "its end came" if self.ended else f"{seconds} s went by"
                    raise AssertionError(f"{end} before {pattern!r}; last: {self.text[-1500:]!r}")

    def skip(self):
        """What is here by now is not matched any more."""
        with self._changed:
            self._at = len(self.text)

    def finish(self, seconds=SOON):
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise AssertionError("a stream is still held open by somebody")
        return self.text


class GuestShell:
    """Commands in the demo guest's shell. Needs `out` (a Stream) and type(text)."""

    def sh(self, command, seconds=SOON):
        """The command's output and exit status."""
        # The echo of the typed line has `$?` where the answer has a number. What is typed before
        # the prompt is there is echoed twice: by the terminal and by the shell.
        self.type(f"{command}; echo =$?=\n")
        match = self.out.expect(rf"{ECHO}\r*\n((?:(?!{ECHO}).)*?)=(\d+)=\r*\n", seconds)
        self.wait_for_prompt(SOON)
        return match.group(1).replace("\r", ""), int(match.group(2))

    def wait_for_prompt(self, seconds=BOOT):
        self.out.expect(re.escape(PROMPT), seconds)

    def wait_for_ipv6(self):
        """Until it has an address that is not tentative: before that it has a way out, but connects
        from its link-local address, which leads nowhere."""
        for _ in range(SOON):
            said = self.sh("ip -6 addr show eth0")[0]
            if "fd71:766d:26:" in said and "tentative" not in said:
                return
            time.sleep(0.5)
        raise AssertionError(said)


def connected(path):
    """A connection to a Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


class ConsoleClient(GuestShell):
    """The other end of a console's socket."""

    def __init__(self, path):
        self.socket = connected(path)
        self.out = Stream(self.socket.fileno())

    def type(self, text):
        self.socket.sendall(text.encode())

    def end(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the VM was faster
        self.out.finish()
        self.socket.close()


class Vm(GuestShell):
    """qvm with pipes on stdin, stdout and stderr."""

    def __init__(self, command, host, stdin=subprocess.PIPE):
        self.process = subprocess.Popen(command, cwd=host.cwd, stdin=stdin,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self.process.pid
        self.out = Stream(self.process.stdout.fileno())
        self.err = Stream(self.process.stderr.fileno())

    def type(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=SOON):
        """The exit status, once all that was written has been read."""
        status = self.process.wait(seconds)
        self.out.finish()
        self.err.finish()
        return status

    def wait_for_prompt(self, seconds=BOOT):
        try:
            super().wait_for_prompt(seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstderr: {self.err.text}") from None

    def errors(self):
        """The lines on stderr."""
        return self.err.text.splitlines()

    def child(self, name, seconds=SOON):
        """The pid of qvm's child of that name."""
        return child(self.pid, name, seconds)

    def end(self):
        """Takes back what the test has of it; says whether it still ran and was killed."""
        running = self.process.poll() is None
        if running:
            self.process.kill()
            self.process.wait(SOON)
        self.out.finish()
        self.err.finish()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                if stream:
                    stream.close()
            except BrokenPipeError:
                pass
        return running


class TerminalVm(GuestShell):
    """qvm on a terminal, under a shell that stays after it, as a user's does. `pid` is what that
    shell waits for; its child is the supervisor, which can leave the terminal."""

    SHELL = 'echo "[shell $$]"; "$@"; echo "[status $?]"; read -r rest'

    def __init__(self, command, host):
        self.master, self.slave = pty.openpty()
        self.settings = termios.tcgetattr(self.slave)
        self.flags = fcntl.fcntl(self.slave, fcntl.F_GETFL)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "sh", "-c", self.SHELL, "sh", *command], cwd=host.cwd,
            stdin=self.slave, stdout=self.slave, stderr=self.slave)
        self.out = Stream(self.master)
        self.shell = int(self.out.expect(r"\[shell (\d+)\]", SOON).group(1))

    @property
    def pid(self):
        return child(self.shell, "qvm", SOON)

    @property
    def supervisor(self):
        return child(self.pid, "qvm", SOON)

    def child(self, name, seconds=SOON):
        """The pid of the supervisor's child of that name."""
        return child(self.supervisor, name, seconds)

    def type(self, text):
        os.write(self.master, text.replace("\n", "\r").encode())

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def wait(self, seconds=SOON):
        """qvm's exit status; the shell and its terminal are still there."""
        return int(self.out.expect(r"\[status (\d+)\]", seconds).group(1))

    def end(self):
        if self.process.returncode is not None:
            return False
        running = children(self.shell)
        for pid in (*running, self.shell):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(SOON)
        os.close(self.slave)
        self.out.finish()
        os.close(self.master)
        return bool(running)


def children(pid):
    """{pid: name} of a process's children."""
    found = {}
    try:
        for number in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found[int(number)] = pathlib.Path(f"/proc/{number}/comm").read_text().strip()
    except OSError:
        pass
    return found


def child(pid, name, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for number, comm in children(pid).items():
            if comm.startswith(name):
                return number
        time.sleep(0.01)
    raise AssertionError(f"process {pid} has no child {name}")
