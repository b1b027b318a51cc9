"""VMs in the background: what starts, watches and ends them is one qvm command after the other."""

import json
import os
import pathlib
import select
import signal
import subprocess
import time

import harness
import vm

SECTIONS_AT_ONCE = ("links", "nft ruleset", "processes", "run directory", "abstract sockets")


def wait_for(what, seconds=vm.SOON):
    """What `what()` says, once that is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.02)


class Guest(vm.GuestShell):
    """The demo guest of a VM in the background; its shell, by `qvm console`."""

    def __init__(self, test, name):
        self.test = test
        self.name = name
        self._console = None

    @property
    def pid(self):
        return self.inspect()["pid"]

    @property
    def address(self):
        return self.inspect()["net"]["address"]

    def inspect(self):
        return self.test.inspect(self.name)

    def log(self):
        """What the guest wrote to its console since the VM was started."""
        return (self.test.host.run / self.name / "console.log").read_text(errors="replace")

    def wait_until_booted(self):
        try:
            wait_for(lambda: vm.PROMPT in self.log(), vm.BOOT)
        except AssertionError:
            raise AssertionError(f"{self.name} does not boot; its console: {self.log()!r}") from None

    def attach(self):
        """To its console; again, where it was left."""
        self.wait_until_booted()
        self._console = self.test.attach(self.name)
        self.type("\n")
        self.wait_for_prompt()
        return self

    @property
    def out(self):
        return self._console.out

    def type(self, text):
        self._console.type(text)

    def kill(self):
        """kill -9 of the supervisor, and until it is gone."""
        kill_and_wait(self.pid)


def kill_and_wait(*pids):
    """kill -9 of processes, and until they are gone."""
    handles = [os.pidfd_open(pid) for pid in pids]
    for handle in handles:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    for handle in handles:
        with os.fdopen(handle):
            wait_for(lambda: is_over(handle))


def is_over(handle):
    return bool(select.select([handle], [], [], 0)[0])


class Test(harness.Test):
    """With VMs in the background, which end with the test."""

    def setUp(self):
        super().setUp()
        self.consoles = []
        self.addCleanup(self.clear)

    def clear(self):
        """A test that failed in the middle must not take the next ones with it."""
        pids = [int(path.read_text() or 0) for path in self.host.run.glob("*/lock")]
        living = [pid for pid in pids if pid and pathlib.Path(f"/proc/{pid}").exists()]
        if living:
            kill_and_wait(*living)
        self.qvm("gc")
        for name in self.qvm("ps", "-a", "-q").stdout.split():
            self.qvm("rm", "-f", name)

    def attach(self, name):
        self.consoles.append(self._ended_with_test(vm.Vm([harness.QVM, "console", name],
                                                         self.host)))
        return self.consoles[-1]

    def run_detached(self, *options):
        """`qvm run -d` to its end."""
        return self.qvm("run", "-q", "-d", *options, seconds=60)

    def start_together(self, *all_options):
        """One `qvm run -d` each at the same moment; their guests, attached."""
        started = [subprocess.Popen([harness.QVM, "run", "-q", "-d", *map(str, options)],
                                    cwd=self.host.cwd, stdin=subprocess.DEVNULL, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                   for options in all_options]
        said = [process.communicate(timeout=60) for process in started]
        self.assertEqual([process.returncode for process in started], [0] * len(started), said)
        guests = [Guest(self, out.strip()) for out, _ in said]
        return [guest.attach() for guest in guests]

    def start_detached(self, *options):
        """One VM in the background; its guest, attached."""
        return self.start_together(options)[0]

    def inspect(self, name):
        done = self.qvm("inspect", name)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)[0]

    def ps(self):
        return json.loads(self.qvm("ps", "--json").stdout)

    def networks(self):
        return json.loads(self.qvm("net", "ls", "--json").stdout)

    def end(self, *guests):
        """`qvm stop -t 0`: at once."""
        done = self.qvm("stop", "-t", "0", *(guest.name for guest in guests))
        self.assertEqual(done.returncode, 0, done.stderr)

    def assert_nothing_left(self):
        for console in self.consoles:
            console.wait()  # they end by themselves, some time after their VM
        self.assert_host_as_before(0, *SECTIONS_AT_ONCE)
        self.assert_host_as_before(harness.GONE)
