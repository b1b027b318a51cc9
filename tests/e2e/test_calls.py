"""SIGKILL before the supervisor's N-th system call, for many N: the host is as it was.

QVM_EVERY_POINT=1 tries every one."""

import os
import random
import signal
import subprocess

import calls
import harness
import picture

POINTS = 24  # of each variant, unless it is every one
LIFE = ["-q", "-m", "64M", "--timeout", "0.3"]


class KillPoints(calls.Test):
    def kill_at(self, number, *words, forked=False, before=()):
        """Runs qvm so; its end, and what was hit."""
        done = subprocess.run(
            [*before, *self.at_call(number, "kill", *words, forked=forked)], cwd=self.host.cwd,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done, *self.what_was_hit()

    def try_points(self, *options, forked=False):
        words = ("run", *LIFE, *options, self.hang)
        self.sweep()  # which makes directories that stay
        before = picture.Picture(self.host)
        total = self.total(words, forked)
        self.assertEqual(picture.difference_to(before, self.host, harness.GONE), "")
        points = list(range(1, total + 1)) if calls.EVERY_POINT else \
            [1 + int(total * (i + random.random()) / POINTS) for i in range(POINTS)]
        hits, tries = 0, 0
        for point in points:
            while True:
                tries += 1
                done, call, total = self.kill_at(point, *words, forked=forked)
                self.settle(done)
                difference = picture.difference_to(before, self.host, calls.GONE, calls.AT_ONCE)
                self.assertEqual(difference, "", f"killed before call {point}, {call}")
                hits += call is not None
                # No two lives have as many calls: how often it is woken is a matter of luck.
                if call or calls.EVERY_POINT or tries > 3 * POINTS:
                    break
                point = random.randint(1, total)
        self.assertGreater(hits, 0.8 * len(points), f"{tries} tries")
        self.sweep()
        self.assertEqual(picture.difference_to(before, self.host, calls.GONE), "")

    def total(self, words, forked):
        """The calls of a life that is not disturbed."""
        done, call, total = self.kill_at(calls.NEVER, *words, forked=forked)
        self.assertIsNone(call)
        self.assertEqual(done.returncode, 0 if forked else 124, done.stderr)
        self.settle(done)
        return total

    def settle(self, done):
        """A VM that was let go before the kill lives its 0.3 s."""
        if done.returncode == 0:
            self.wait_until(lambda: not self.ps())

    def test_isolated(self):
        self.try_points("--net", "isolated")

    def test_nat(self):
        self.try_points("--net", "nat", "-p", "0:80", "-p", "0:53/udp")

    def test_flat(self):
        self.try_points("--net", "flat")

    def test_in_the_background(self):
        self.try_points("-d", "--net", "nat", forked=True)

    def test_first_of_a_group(self):
        self.try_points("--net", "nat", "--group", "lab")

    def test_second_of_a_group(self):
        self.detach("--net", "nat", "--group", "lab", "--name", "first", "-m", "64M", self.hang)
        self.try_points("--group", "lab")

    def test_a_leak_is_found(self):
        """One that is planted."""
        before = self.instead_of("dnsmasq", "setsid sleep 50 & exec sleep 60")
        words = ("run", *LIFE, "--net", "isolated", self.hang)
        picture_before = picture.Picture(self.host)
        self.kill_at(calls.NEVER, *words, before=before)
        difference = picture.difference_to(picture_before, self.host, calls.GONE, calls.AT_ONCE)
        for pid, name in picture.processes().items():
            if name == "sleep":
                os.kill(pid, signal.SIGKILL)
        self.assertRegex(difference, r"\+net:\[\d+\]")
        self.assertRegex(difference, r"\+\d+ sleep")


if __name__ == "__main__":
    harness.main()
