"""SIGKILL before the supervisor's N-th system call, for many N: the host is as it was.

Short lives: 18 points of each kind, or every one with QVM_EVERY_POINT=1. Longer lives, in which
something happens: a random sample of 6 points each, or of QVM_POINTS in all. Several lives go on at
the same time; what is compared, and timed, is the host after the last of them."""

import concurrent.futures
import contextlib
import itertools
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time

import calls
import harness
import picture
import qmp_client
import vm

POINTS = 18  # of each kind of a short life, else
SAMPLE = int(os.environ.get("QVM_POINTS") or 0)  # of all kinds of a longer one together
AT_A_TIME = 6
MISSED = 8 * AT_A_TIME
LEAST = 400  # calls; no life has fewer
ALL_GONE = 20  # for many
LIFE = ["-q", "-m", "64M", "--timeout", "0.3"]


class KillPoints(harness.Test):
    reports = itertools.count()

    def at_call(self, number, action, *words, forked=False, before=(), stdin=subprocess.DEVNULL,
                meanwhile=lambda process: None):
        """Runs qvm so; its exit status, and the call that was hit or (total, None)."""
        report = self.host.files / f"report{next(self.reports)}"
        options = ["--forked"] if forked else []
        command = [*before, *harness.CALLER, harness.AT_CALL, str(number), action, report, *options,
                   "--", harness.PROGRAM, *map(str, words)]
        with subprocess.Popen(command, cwd=self.host.cwd, stdin=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            meanwhile(process)
            out, err = process.communicate(timeout=60)
        count, call = report.read_text().split()
        report.unlink()
        done = subprocess.CompletedProcess(command, process.returncode, out, err)
        return done, (calls.NAMES[int(call)] if call != "-" else None), int(count)

    def try_points(self, *options, forked=False):
        """Of short lives. `{}` in an option is a number that the lives of a moment do not share."""
        def life(point, slot):
            words = (str(word).format(slot) for word in options)
            return self.at_call(point, "kill", "run", *LIFE, *words, self.hang, forked=forked)
        self.try_lives(life, (0, 124), None if calls.EVERY_POINT else POINTS)

    def try_lives(self, life, statuses, sample):
        """`life(point, slot)` is one that ends in one of `statuses` where nobody kills it."""
        self.sweep()  # which makes directories that stay
        before = picture.Picture(self.host)
        done, call, self.total = life(10**9, 0)
        self.assertIsNone(call)
        self.assertIn(done.returncode, statuses, done.stderr)
        self.assertEqual(picture.difference_to(before, self.host, harness.GONE), "")
        if sample is None:
            hits = self.kill_all(before, life, itertools.count(1))
            self.assertGreater(hits, LEAST)
        else:
            # Of as many as the lives before had; another in place of one that was not reached.
            parts = [(i + random.random()) / sample for i in range(sample)]
            others = [random.random() for _ in range(2 * sample)]
            points = (1 + int(self.total * part) for part in (*parts, *others))
            hits = self.kill_all(before, life, points, sample)
            self.assertGreater(hits, 0.8 * sample)
        self.sweep()
        self.assertEqual(picture.difference_to(before, self.host, calls.GONE), "")

    def kill_all(self, before, life, points, most=10**9):
        """How many were hit, of `points` in their order, until `most` were. No two lives have as
        many calls (how often one is woken, say by the firmware's log, is a matter of luck): the
        last is where many in a row are over before their point."""
        hits, missed, times = 0, 0, []
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            while hits < most and missed < MISSED:
                batch = list(itertools.islice(points, min(AT_A_TIME, most - hits)))
                if not batch:
                    break
                lives = list(pool.map(life, batch, range(len(batch))))
                start = time.monotonic()
                difference = picture.difference_to(before, self.host, ALL_GONE, calls.AT_ONCE)
                times.append(time.monotonic() - start)
                killed = [f"{point}, {call}" for point, (_, call, _) in zip(batch, lives) if call]
                self.assertEqual(difference, "", f"killed before calls {'; '.join(killed)}")
                hits += len(killed)
                self.total = next((count for _, call, count in lives if not call), self.total)
                missed = 0 if killed else missed + len(batch)
        print(f"\n  {hits} points, {AT_A_TIME} at a time: clean after "
              f"{statistics.median(times):.2f} s, at worst {max(times):.2f} s ... ",
              end="", file=sys.stderr, flush=True)
        return hits


class ShortLives(KillPoints):
    """From exec to exit."""

    def test_isolated(self):
        self.try_points("--net", "isolated")

    def test_nat(self):
        self.try_points("--net", "nat", "-p", "0:80", "-p", "0:53/udp")

    @harness.needs_root("flat needs root")
    def test_flat(self):
        self.try_points("--net", "flat")

    def test_volumes_and_drives(self):
        drive = self.host.files / "drive.raw"
        drive.write_bytes(bytes(65536))
        self.addCleanup(drive.unlink)
        self.try_points("--net", "isolated", "-v", f"{self.host.cwd}:/a", "-v", f"{self.host.cwd}:/b:ro",
                        "--drive", f"{drive}:ro")

    def test_in_the_background(self):
        self.try_points("-d", "--net", "nat", forked=True)

    def test_first_of_a_group(self):
        self.try_points("--net", "nat", "--group", "lab{}")

    def test_second_of_a_group(self):
        self.detach("--net", "nat", "--group", "lab", "--name", "first", "-m", "64M", self.hang)
        self.try_points("--group", "lab")

    def test_one_alone_is_gone_at_once(self):
        """The time that it takes; killed when all is there."""
        times = []
        before = picture.Picture(self.host)
        for net in 3 * harness.NETS:
            started = self.start("-q", "-m", "64M", "--net", net, "--name", "web", self.hang)
            started.out.expect(harness.STARTED, 60)
            start = time.monotonic()
            started.signal(signal.SIGKILL)
            difference = picture.difference_to(before, self.host, calls.GONE, calls.AT_ONCE)
            times.append(time.monotonic() - start)
            self.assertEqual(difference, "")
            started.wait()
        self.sweep()
        print(f"\n  clean after {statistics.median(times):.2f} s, at worst {max(times):.2f} s ... ",
              end="", file=sys.stderr, flush=True)

    def test_a_leak_is_found(self):
        """One that is planted."""
        before = self.instead_of("dnsmasq", "setsid sleep 50 & exec sleep 60")
        words = ("run", *LIFE, "--net", "isolated", self.hang)
        picture_before = picture.Picture(self.host)
        self.at_call(10**6, "kill", *words, before=before)
        difference = picture.difference_to(picture_before, self.host, calls.GONE, calls.AT_ONCE)
        for pid, name in picture.processes().items():
            if name == "sleep":
                os.kill(pid, signal.SIGKILL)
        self.assertRegex(difference, r"\+net:\[\d+\]")
        self.assertRegex(difference, r"\+\d+ sleep")


class LongerLives(KillPoints):
    """Some seconds, with something going on; killed at a random call of them."""

    def try_sample(self, life, *statuses):
        self.try_lives(life, statuses, -(-SAMPLE // 4) or 6)

    def connect(self, process, connect):
        """A client of a VM that is on its way up, or None if it does not come up."""
        while process.poll() is None:
            with contextlib.suppress(OSError):
                return connect()
            time.sleep(0.01)
        return None

    def test_output_until_it_powers_off(self):
        """A guest that prints, one who reads its console, and the guest's own end."""
        def watch(process, name):
            if console := self.connect(process, lambda: vm.ConsoleClient(
                    self.host.run / name / "console.sock")):
                console.out.finish()
                console.end()

        def life(point, slot):
            name = f"talker{slot}"
            return self.at_call(point, "kill", "run", "-q", "-m", "64M", "--net", "nat", "--name",
                                name, self.talker,
                                meanwhile=lambda process: watch(process, name))
        self.try_sample(life, 0)

    def test_clients_and_a_stop(self):
        """Requests over the control socket, the last of them a stop that the guest does not
        heed; in the background."""
        def ask(process, name):
            client = self.connect(process, lambda: qmp_client.Client(
                self.host.run / name / "control.sock", negotiate=False))
            if not client:
                return
            with contextlib.suppress(OSError, ValueError):  # a line that is cut off
                for command in ("qmp_capabilities", *20 * ("query-status", "qvm-inspect")):
                    client.execute(command)
            client.close()
            self.qvm("stop", "-t", "0.5", name)

        def life(point, slot):
            name = f"asked{slot}"
            return self.at_call(point, "kill", "run", "-q", "-d", "-m", "64M", "--net", harness.FLAT,
                                "--name", name, self.hang, forked=True,
                                meanwhile=lambda process: ask(process, name))
        self.try_sample(life, 0)

    def test_traffic_through_a_published_port(self):
        """A guest that serves files to whoever connects, until it has served enough."""
        boot = self.boot_files()
        serve = (b"for i in $(seq 8); do head -c 200000 /dev/zero | nc -l -p 7000; done;"
                 b" poweroff\n")

        def fetch(process, port):
            process.stdin.write(serve.decode())
            process.stdin.close()
            process.stdin = None
            while process.poll() is None:
                with contextlib.suppress(OSError), \
                        socket.create_connection(("127.0.0.1", port), 5) as client:
                    while client.recv(65536):
                        pass
                time.sleep(0.02)

        def life(point, slot):
            port = 18100 + slot
            return self.at_call(point, "kill", "run", "-q", "--timeout", "30", "--net", "isolated",
                                "-p", f"{port}:7000", *boot, stdin=subprocess.PIPE,
                                meanwhile=lambda process: fetch(process, port))
        self.try_sample(life, 0)

    def test_members_that_come_and_go(self):
        """One of a group is killed, first or not, while others join and leave."""
        def visit(process, group):
            while process.poll() is None:
                name = f"{group}-visitor"
                self.qvm("run", "-q", "-d", "-m", "64M", "--net", "nat", "--group", group,
                         "--name", name, self.hang)
                self.qvm("kill", name)

        def life(point, slot):
            group = f"lab{slot}"
            return self.at_call(point, "kill", "run", "-q", "-m", "64M", "--timeout", "1.5",
                                "--net", "nat", "--group", group, self.hang,
                                meanwhile=lambda process: visit(process, group))
        self.try_sample(life, 124)


if __name__ == "__main__":
    harness.main()
