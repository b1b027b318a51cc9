"""A child of the supervisor's is killed, at any moment of a VM's life: it is noticed at once, said,
and no guest ends for what it can do without. What else works for a VM (port forwarders, the DNS
relay) is in the supervisor's own process. QVM_TRIES says how many random moments of each kind."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import detached
import harness
import played_host
import vm
from detached import wait_for
from test_groups import DHCP

TRIES = int(os.environ.get("QVM_TRIES") or 8)
NUMBERS = (signal.SIGKILL, signal.SIGSEGV)
NETS = harness.NETS
LIFE = 0.7  # seconds from exec to a time-out
HOW = "signal {} \\(.*\\)"

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Children(detached.Test):
    def setUp(self):
        super().setUp()
        self.times = []
        self.addCleanup(self.report)

    def report(self):
        if self.times:
            print(f"\n  {len(self.times)} ends, noticed after {max(self.times):.3f} s at worst ... ",
                  end="", file=sys.stderr, flush=True)

    def kill_child(self, pid, name, number, after=0.0):
        """Signals a child of that name ("": any) once `after` seconds have gone by: when that was,
        or None if there was none until the parent's end."""
        time.sleep(after)
        while True:
            for child, comm in vm.children(pid).items():
                if comm.startswith(name):
                    try:
                        os.kill(child, number)
                        return time.monotonic()
                    except ProcessLookupError:
                        return None
            if after or is_zombie(pid):
                return None

    def end_of(self, started, killed):
        """Its exit status."""
        status = started.wait()
        if killed:
            self.times.append(time.monotonic() - killed)
        return status

    def assert_says(self, started, *lines):
        """stderr has these lines (patterns) and no others."""
        self.assertEqual(len(started.errors()), len(lines), started.err.text)
        for said, line in zip(started.errors(), lines):
            self.assertRegex(said, f"^qvm: {line}$")

    def life(self, i, *options):
        return self.start("-q", "-m", "64M", "--net", NETS[i % 3], "--timeout", LIFE, *options,
                          self.hang)

    # --- QEMU -----------------------------------------------------------------------------------

    def test_qemu_at_random_moments(self):
        """Of a life that ends by a time-out: 123 or, before its CPUs run, 125."""
        seen = {}
        for i in range(TRIES):
            number = random.choice(NUMBERS)
            started = self.life(i)
            killed = self.kill_child(started.pid, "qemu-system", number,
                                     random.uniform(0.02, 1.1 * LIFE))
            status = self.end_of(started, killed)
            how = HOW.format(int(number))
            self.assertIn(status, (123, 124, 125) if killed else (124,), started.err.text)
            self.assert_says(started, {123: f"QEMU died: {how}", 125: f"start QEMU: {how}",
                                       124: "--timeout: the guest still ran.*"}[status])
            seen[status] = seen.get(status, 0) + 1
        self.assertGreater(seen.get(123, 0), 0, seen)

    def test_qemu_before_and_after_its_cpus_run(self):
        before = 0
        for i, number in enumerate(2 * NUMBERS + NUMBERS[:1]):
            with self.subTest(number=number):
                started = self.start("-q", "-m", "64M", "--net", NETS[i % 3], self.hang)
                killed = self.kill_child(started.pid, "qemu-system", number)
                status = self.end_of(started, killed)
                # On a busy machine QEMU may be faster than who looks for it.
                step = {123: "QEMU died", 125: "start QEMU"}[status]
                self.assert_says(started, f"{step}: {HOW.format(int(number))}")
                before += status == 125
                started = self.start("-q", "-m", "64M", "--net", NETS[i % 3], self.hang)
                started.out.expect(harness.STARTED, 60)
                killed = self.kill_child(started.pid, "qemu-system", number)
                self.assertEqual(self.end_of(started, killed), 123)
                self.assert_says(started, f"QEMU died: {HOW.format(int(number))}")
        self.assertGreater(before, 0)

    def test_qemu_in_the_background(self):
        for number in NUMBERS:
            name = self.detach("--net", "nat", "-m", "64M", self.hang)
            waiting = self.started("wait", name)
            wait_for(lambda: self.inspect(name)["state"] == "running")
            time.sleep(0.2)  # so that `wait` waits
            os.kill(self.inspect(name)["qemu_pid"], number)
            self.assertEqual((self.end_of(waiting, time.monotonic()), waiting.out.text),
                             (123, "123\n"))
            self.assertEqual(self.ps(), [])

    # --- qemu-img -------------------------------------------------------------------------------

    def test_qemu_img(self):
        for number in NUMBERS:
            before = self.instead_of("qemu-img", f"kill -{int(number)} $$; sleep 5")
            why = f"open image '.*': qemu-img was ended by {HOW.format(int(number))}"
            for words in (("run", "-q"), ("run", "-q", "-d"), ("create",)):
                with self.subTest(words=words, number=number):
                    done = self.qvm(*words, "--net", "isolated", self.hang, before=before)
                    self.assert_refused(done, why)
                    self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_qemu_img_itself(self):
        """The real one, as soon as it is there: also between fork and exec."""
        hits = 0
        for i in range(TRIES):
            number = random.choice(NUMBERS)
            started = self.life(i)
            killed = self.kill_child(started.pid, "", number)
            status = self.end_of(started, killed)
            # It was done already: nobody was killed, or QEMU, which came next.
            if status == 124 or "start QEMU" in started.err.text or status == 123:
                continue
            self.assertEqual(status, 125)
            self.assert_says(started, f"open image '.*': qemu-img was ended by "
                             f"{HOW.format(int(number))}")
            hits += 1
        self.assertGreater(hits, TRIES / 2)

    # --- dnsmasq --------------------------------------------------------------------------------

    def test_dnsmasq_at_random_moments(self):
        """No life is another for it."""
        for i in range(TRIES):
            started = self.life(i)
            self.kill_child(started.pid, "dnsmasq", random.choice(NUMBERS),
                            random.uniform(0.02, 1.1 * LIFE))
            self.assertEqual(started.wait(), 124)
            self.assert_says(started, "--timeout: the guest still ran.*")

    def test_a_guest_keeps_its_network_without_dnsmasq(self):
        for net in ("nat", "isolated"):
            started = self.start("--net", net, "--name", "web", *self.boot_files())
            started.wait_for_prompt()
            for number in (*NUMBERS, signal.SIGTERM):
                with self.subTest(net=net, number=number):
                    time.sleep(1.2)  # so that it was up
                    old = started.child("dnsmasq")
                    os.kill(old, number)
                    killed = time.monotonic()
                    started.err.expect("qvm: dnsmasq died: [^\n]*; it is started again\n", 10)
                    wait_for(lambda: started.child("dnsmasq") != old)
                    self.times.append(time.monotonic() - killed)
                    said, status = started.sh(DHCP)
                    self.assertEqual(status, 0, said)
                    self.assertIn("demo: eth0 192.168.26.10/24 ", said)
                    self.assertIn("192.168.26.10", started.sh("nslookup web 2>&1")[0])
                    if net == "nat":
                        said = started.sh(f"wget -q -O - http://{played_host.SERVICE_NAME}/")
                        self.assertEqual(said, (f"you are {played_host.ADDRESS}\n", 0))
            self.power_off(started)

    def test_dnsmasq_that_never_comes_up(self):
        for number in NUMBERS:
            before = self.instead_of("dnsmasq", f"kill -{int(number)} $$; sleep 5")
            for words in ((), ("--group", "lab")):
                with self.subTest(words=words, number=number):
                    started = self.start("-q", "-m", "64M", "--net", "nat", *words, self.hang,
                                         before=before)
                    self.assertEqual(started.wait(), 125)
                    self.assert_says(started, f"dnsmasq died: {HOW.format(int(number))}")

    # --- a group --------------------------------------------------------------------------------

    def lookup(self, name):
        """The address of a name inside the group's namespace, or ""."""
        done = self.qvm("net", "exec", "lab", "--", "getent", "ahostsv4", name)
        return (done.stdout.split() or [""])[0]

    def test_children_of_a_group(self):
        """The leader's and a member's: who loses QEMU ends, the others go on."""
        members = {}
        for name in ("ann", "bob", "cat"):
            members[name] = self.start("-m", "64M", "--group", "lab", "--net", "nat", "--name",
                                       name, self.hang)
            members[name].out.expect(harness.STARTED, 60)
        time.sleep(1.2)
        for number in NUMBERS:
            with self.subTest("the leader's dnsmasq", number=number):
                old = members["ann"].child("dnsmasq")
                os.kill(old, number)
                members["ann"].err.expect("qvm: dnsmasq died: [^\n]*; it is started again\n", 10)
                wait_for(lambda: members["ann"].child("dnsmasq") != old)
                for name in members:
                    wait_for(lambda: self.lookup(name))
                time.sleep(1.2)
        for name, rest, number in (("bob", ("ann", "cat"), signal.SIGKILL),
                                   ("ann", ("cat",), signal.SIGSEGV)):
            with self.subTest("QEMU", of=name):
                started = members[name]
                killed = self.kill_child(started.pid, "qemu-system", number)
                self.assertEqual(self.end_of(started, killed), 123)
                self.assertRegex(started.errors()[-1],
                                 f"^qvm: QEMU died: {HOW.format(int(number))}$")
                wait_for(lambda: not self.lookup(name))
                for other in rest:
                    self.assertTrue(wait_for(lambda: self.lookup(other)))
                self.assertEqual(sorted(one["name"] for one in self.ps()), sorted(rest))
        self.assertEqual(self.qvm("kill", "cat").returncode, 0)
        self.assertEqual(members["cat"].wait(), 137)

    # --- who stands in for -d -------------------------------------------------------------------

    def test_the_supervisor_behind_a_stand_in(self):
        """Its end is the stand-in's, until that has let it go."""
        statuses = []
        for i in range(TRIES):
            number = random.choice(NUMBERS)
            started = self.started("run", "-q", "-d", "-m", "64M", "--net", NETS[i % 3], "--name",
                                   "web", self.hang)
            killed = self.kill_child(started.pid, "qvm", number, random.uniform(0.01, 0.12))
            status = self.end_of(started, killed)
            self.assertIn(status, (0, 128 + number) if killed else (0,), started.err.text)
            self.assertEqual(started.err.text, "")
            statuses.append(status)
            self.qvm("kill", "web")
            self.sweep()
            self.assert_host_as_before(harness.GONE)
        self.assertGreater(sum(status > 128 for status in statuses), 0, statuses)

    def test_the_stand_in(self):
        """Nobody waits for a VM that nobody has been told of."""
        for i in range(TRIES):
            number = random.choice(NUMBERS)
            started = self.started("run", "-q", "-d", "-m", "64M", "--net", NETS[i % 3], "--name",
                                   "web", self.hang)
            time.sleep(random.uniform(0.01, 0.12))
            supervisors = vm.children(started.pid)
            started.signal(number)
            status = started.wait()
            self.assertIn(status, (0, -number))
            if status == 0 or started.out.text:
                self.qvm("kill", "web")
            else:
                # Who dies with its parent may still be at it when the parent is gone.
                self.wait_until(lambda: all(map(is_zombie, supervisors)) and not self.ps())
            self.sweep()
            self.assert_host_as_before(harness.GONE)


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return re.search(r"\) (\S)", file.read()).group(1) in "ZX"
    except OSError:
        return True


if __name__ == "__main__":
    harness.main()
