"""test_soak.py [--guests N] [--seconds S] [--seed X]: guests that end in all ways, one after another
and many at a time, on a host that must be as it was whenever none is left.

Every fifth of the guests is alone on the host, the others come in waves of eight. Each is of a
random kind (isolated, nat, flat, a member of a group; in the foreground, in the background; a guest
that hangs, prints, or boots Linux) and ends in a random way at a random moment. Without arguments
it is 40 guests and a minute at most (QVM_SOAK_GUESTS, QVM_SOAK_SECONDS, QVM_SOAK_SEED)."""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time

import harness
import picture
import vm
from calls import AT_ONCE
from detached import wait_for

GUESTS = int(os.environ.get("QVM_SOAK_GUESTS") or 40)
SECONDS = float(os.environ.get("QVM_SOAK_SECONDS") or 60)
SEED = os.environ.get("QVM_SOAK_SEED") or str(random.randrange(10**6))
AT_A_TIME = 8
ALONE = 5  # every fifth
SWEEP = 5  # waves between two comparisons of everything
GONE = 20  # seconds
COMMAND = 60
NETS = (*harness.NETS, "group")
OUTLIVED = "dnsmasq killed"  # what a guest is to survive


class Life:
    """One guest, from `qvm run` to its end."""

    def __init__(self, test, number, choose):
        self.test = test
        self.name = f"vm{number}"
        self.end = choose.choice(tuple(ENDS))
        # A group has one dnsmasq, and which member's it is changes.
        self.net = choose.choice(NETS[:3] if self.end == OUTLIVED else NETS)
        self.detached = choose.random() < 0.5
        self.wait = choose.uniform(0, 0.6)
        self.signal = choose.choice((signal.SIGKILL, signal.SIGSEGV))
        self.group = f"herd{number // AT_A_TIME}"
        self.boots = choose.random() < 0.15
        self.problem = ""

    def __str__(self):
        place = "in the background" if self.detached else "in the foreground"
        return f"{self.name}, {self.net}, {place}: {self.end}"

    def __call__(self):
        try:
            self.live()
        except (AssertionError, OSError, KeyError, subprocess.SubprocessError) as error:
            self.problem = f"{self}: {type(error).__name__} {error}"
        return self

    def options(self):
        net = ("--net", "nat", "--group", self.group) if self.net == "group" else \
            ("--net", self.net)
        timeout = ("--timeout", "2.5") if self.end == "time-out" else ()
        if self.end == "guest powers off":
            image = (self.test.talker,)
        elif self.boots:
            image = self.test.boot
        else:
            image = (self.test.hang,)
        return (*net, *timeout, "-m", "64M" if len(image) == 1 else "256M", "--name", self.name,
                *image)

    def live(self):
        words = ["run", "-q", *(["-d"] if self.detached else []), *self.options()]
        self.process = subprocess.Popen(
            [harness.QVM, *map(str, words)], cwd=self.test.host.cwd, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            self.supervisor = self.find_supervisor()
            time.sleep(self.wait)
            statuses = ENDS[self.end](self)
            _, said = self.process.communicate(timeout=COMMAND)
            self.ended(statuses, said)
        finally:
            self.process.kill()
            self.process.communicate()

    def find_supervisor(self):
        if not self.detached:
            return self.process.pid
        status = self.process.wait(COMMAND)
        if status != 0:
            raise AssertionError(f"exit status {status}: {self.process.stderr.read()}")
        lock = self.test.host.run / self.name / "lock"
        try:
            return int(lock.read_text())
        except (OSError, ValueError):  # it is over
            return 0

    def ended(self, statuses, said):
        """As it was meant?"""
        if self.detached:
            status, = wait_for(lambda: self.test.ended.get(self.name), COMMAND)
        else:
            status = self.process.returncode
        if status not in statuses:
            raise AssertionError(f"ended with {status}, not with {statuses}: {said}")

    # --- ends: the exit statuses that are right ---------------------------------------------------

    def by_itself(self):
        return (0,)

    def by_timeout(self):
        return (124,)

    def kill(self, pid, number=signal.SIGKILL):
        """False if it is over by itself."""
        try:
            handle = os.pidfd_open(pid) if pid else -1
        except ProcessLookupError:
            return False
        if handle < 0:
            return False
        with os.fdopen(handle):
            signal.pidfd_send_signal(handle, number)
        return True

    def child(self, name):
        return vm.child(self.supervisor, name, 10)

    def supervisor_killed(self):
        self.kill(self.supervisor)
        return (-signal.SIGKILL, "died")

    def qemu_killed(self):
        self.kill(self.child("qemu-system"), self.signal)
        return (123, 125)

    def dnsmasq_killed(self):
        pid = self.child("dnsmasq")
        self.kill(pid, self.signal)
        wait_for(lambda: self.child("dnsmasq") != pid)
        return self.killed_by_verb()

    def terminated(self):
        """The second one ends what does not heed the first."""
        self.kill(self.supervisor, signal.SIGTERM)
        time.sleep(0.3)
        self.kill(self.supervisor, signal.SIGTERM)
        return (143, -signal.SIGTERM)  # it may be that early that there is no handler

    def verb(self, *words):
        # One that is on its way up answers when it runs.
        wait_for(lambda: (self.test.host.run / self.name / "control.sock").exists() or
                 self.process.poll() is not None)
        done = self.test.qvm(*words, self.name, seconds=COMMAND)
        if done.returncode != 0:
            raise AssertionError(f"qvm {' '.join(words)}: {done.stderr}")

    def stopped(self):
        self.verb("stop", "-t", "0")
        return (137,)

    def killed_by_verb(self):
        self.verb("kill")
        return (137,)


ENDS = {
    "guest powers off": Life.by_itself,
    "time-out": Life.by_timeout,
    "supervisor killed": Life.supervisor_killed,
    "QEMU killed": Life.qemu_killed,
    OUTLIVED: Life.dnsmasq_killed,
    "SIGTERM": Life.terminated,
    "qvm stop": Life.stopped,
    "qvm kill": Life.killed_by_verb,
}


class Soak(harness.Test):
    def setUp(self):
        super().setUp()
        self.boot = self.boot_files()
        self.ended = {}  # by name: (exit status or "died",), as `qvm events` said
        self.events = subprocess.Popen([harness.QVM, "events", "--json"], stdout=subprocess.PIPE,
                                       text=True)
        self.reader = concurrent.futures.ThreadPoolExecutor(1)
        listening = self.reader.submit(self.listen)

        def stop_listening():
            self.events.terminate()
            self.events.wait(20)
            listening.result(20)
            self.events.stdout.close()
            self.reader.shutdown()
        self.addCleanup(self.qvm, "gc")
        self.addCleanup(stop_listening)
        wait_for(lambda: list(self.host.run.glob(".events/*.sock")))

    def listen(self):
        for line in self.events.stdout:
            event = json.loads(line)
            if event["event"] in ("stopped", "died"):
                self.ended[event["name"]] = (event.get("exit_status", "died"),)

    def test_it(self):
        print(f"\n  seed {SEED}, {GUESTS} guests, {SECONDS:.0f} s at most", file=sys.stderr)
        before = picture.Picture(self.host)
        lives = [Life(self, number, random.Random(f"{SEED} {number}")) for number in range(GUESTS)]
        waves = [[life] for life in lives[::ALONE]]
        others = [life for i, life in enumerate(lives) if i % ALONE]
        waves += [others[i:i + AT_A_TIME] for i in range(0, len(others), AT_A_TIME)]
        random.Random(SEED).shuffle(waves)
        begin = time.monotonic()
        tried, times = [], {1: [], AT_A_TIME: []}
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            for number, wave in enumerate(waves):
                if time.monotonic() - begin > SECONDS:
                    break
                tried += pool.map(lambda life: life(), wave)
                start = time.monotonic()
                self.compare(before, wave, AT_ONCE)
                times[1 if len(wave) == 1 else AT_A_TIME].append(time.monotonic() - start)
                if number % SWEEP == 0:
                    self.sweep()
                    self.compare(before, wave)
        self.print_table(tried, times, time.monotonic() - begin)
        self.assertEqual([life.problem for life in tried if life.problem], [])

    def compare(self, before, wave, sections=None):
        leak = picture.difference_to(before, self.host, GONE, sections)
        self.assertEqual(leak, "", [str(life) for life in wave])

    def print_table(self, tried, times, seconds):
        rows = collections.defaultdict(collections.Counter)
        for life in tried:
            for row in (life.end, "all"):
                rows[row]["tried"] += 1
                rows[row]["meant"] += not life.problem
        lines = [f"seed {SEED}: {len(tried)} guests in {seconds:.0f} s", "",
                 f"{'end':<24} {'tried':>6} {'ended as meant':>15}"]
        lines += [f"{end:<24} {rows[end]['tried']:>6} {rows[end]['meant']:>15}"
                  for end in (*ENDS, "all")]
        outlived = rows[OUTLIVED]
        lines += ["", f"survived kills: {outlived['meant']} of {outlived['tried']} guests whose "
                  "dnsmasq was killed", f"leaked: nothing in {sum(map(len, times.values()))} "
                  "comparisons of the host", "",
                  f"{'clean host after the end of; s':<32} {'median':>6} {'worst':>6}"]
        for size, values in times.items():
            if values:
                lines.append(f"{'one' if size == 1 else f'up to {size} at once':<32} "
                             f"{statistics.median(values):>6.2f} {max(values):>6.2f}")
        print("\n" + "\n".join("  " + line for line in lines), file=sys.stderr)


def take_arguments():
    """They are handed on in the environment: main() runs this file again."""
    parser = argparse.ArgumentParser()
    for name in ("guests", "seconds", "seed"):
        parser.add_argument(f"--{name}")
    known, rest = parser.parse_known_args()
    for name, value in vars(known).items():
        if value is not None:
            os.environ[f"QVM_SOAK_{name.upper()}"] = value
    sys.argv[1:] = rest


if __name__ == "__main__":
    take_arguments()
    harness.main()
