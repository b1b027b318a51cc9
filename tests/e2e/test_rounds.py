"""Many lives at once: what is left after hundreds of VMs, and what those gain that live beside
them. QVM_E2E_ROUNDS says how many."""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import time

import detached
import harness
import picture
from detached import wait_for

ROUNDS = int(os.environ.get("QVM_E2E_ROUNDS") or 200)
AT_A_TIME = 8
COMMAND = 60  # seconds for one, on a host that is very busy
GROWTH = 256  # KiB: an allocator's; a leak of 4 KiB a round is thrice that
# Most are of the kind that a test suite has; every fifth has an uplink, every fifth a group.
KINDS = (("--net", "isolated"), ("--net", "isolated"), ("--net", "isolated"), ("--net", "nat"),
         ("--group", "herd"))


class Grown:
    """A process's memory and descriptors."""

    def __init__(self, pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        self.memory = int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1))
        self.descriptors = len(picture.open_files(pid))


class Rounds(detached.Test):
    def setUp(self):
        super().setUp()
        self.data = self.host.base / "data"

    def command(self, *words):
        done = self.qvm(*words, seconds=COMMAND)
        self.assertEqual(done.returncode, 0, f"qvm {' '.join(map(str, words))}: {done.stderr}")
        return done

    def round(self, number):
        name = f"vm{number}"
        self.command("create", "--name", name, *KINDS[number % len(KINDS)], self.hang)
        self.command("start", name)
        self.command("stop", "-t", "0", name)
        self.command("rm", name)

    def member_round(self, number):
        """A life in a group that all others come to and leave as well, leaders and all."""
        name = f"vm{number}"
        self.command("run", "-q", "-d", "--group", "herd", "--name", name, self.hang)
        living = [vm for vm in self.ps() if vm["name"] == name]
        self.assertEqual([vm["net"]["mode"] for vm in living], ["nat"])
        if number % 3 == 0:
            detached.kill_and_wait(living[0]["pid"])
        else:
            self.command(*(("stop", "-t", "0") if number % 3 == 1 else ("kill",)), name)

    def rounds(self, numbers, round=None):
        """Every failure is one of the test."""
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            for _ in pool.map(round or self.round, numbers):
                pass

    def quiet(self):
        """What the others left to be told is told, and their namespaces are gone."""
        wait_for(lambda: len(self.ps()) == 2)
        time.sleep(1)

    def test_members_come_and_go(self):
        self.rounds(range(ROUNDS), self.member_round)
        self.command("gc")
        self.assert_host_as_before(harness.GONE)

    def test_rounds(self):
        events = subprocess.Popen([harness.QVM, "events", "--json"], stdout=subprocess.PIPE,
                                  text=True)
        heard = []
        reader = concurrent.futures.ThreadPoolExecutor(1)
        listening = reader.submit(lambda: heard.extend(events.stdout))
        self.addCleanup(events.stdout.close)
        self.addCleanup(reader.shutdown)
        self.addCleanup(events.kill)
        self.command("run", "-q", "-d", "--name", "alone", "--net", "nat", "-p", "0:80", self.hang)
        self.command("run", "-q", "-d", "--name", "herder", "--group", "herd", self.hang)
        beside = {name: self.inspect(name)["pid"] for name in ("alone", "herder")}
        beside["events"] = events.pid

        # The first rounds are what fills caches.
        warm = max(AT_A_TIME, ROUNDS // 4)
        self.rounds(range(warm))
        self.quiet()
        before = {name: Grown(pid) for name, pid in beside.items()}
        self.rounds(range(warm, ROUNDS))
        self.quiet()
        for name, pid in beside.items():
            with self.subTest(name):
                after = Grown(pid)
                self.assertEqual(after.descriptors, before[name].descriptors)
                self.assertLess(after.memory - before[name].memory, GROWTH)
        self.assertEqual(self.command("gc").stdout, "")
        self.assertEqual([str(path) for path in self.data.rglob("*")
                          if not path.is_dir() and path.parent.name != "ssh"], [])

        self.command("stop", "-t", "0", "alone", "herder")
        events.terminate()
        events.wait(20)
        listening.result(20)
        for event, count in (("created", ROUNDS), ("started", ROUNDS + 2), ("stopped", ROUNDS + 2),
                             ("removed", ROUNDS), ("died", 0)):
            said = sum(f'"event":"{event}"' in line.replace(" ", "") for line in heard)
            self.assertEqual(said, count, event)
        self.assert_nothing_left()


if __name__ == "__main__":
    harness.main()
