"""VMs in the background: run -d, and the verbs that find, end and watch them."""

import json
import os
import re
import signal
import subprocess
import time

import harness

HEADINGS = ["NAME", "STATE", "NET", "ADDRESS", "HOST ADDRESS", "PORTS", "IMAGE", "CREATED"]


class Detached(harness.Test):
    def test_it_prints_the_name_and_leaves(self):
        done = self.qvm("run", "-d", "--net", "none", "--name", "Web", self.hang)
        self.killed_with_test("web")
        self.assertEqual((done.returncode, done.stdout), (0, "web\n"))
        self.assertRegex(done.stderr, "^(qvm: no KVM here.*\n)?$")
        (vm,) = self.ps()
        self.assertEqual((vm["name"], vm["state"]), ("web", "running"))
        with self.subTest("it has left the caller's session, and holds nothing of it"):
            self.assertEqual(os.getsid(vm["pid"]), vm["pid"])
            for fd in range(3):
                self.assertEqual(os.readlink(f"/proc/{vm['pid']}/fd/{fd}"), "/dev/null")
        with self.subTest("each has a name of its own"):
            names = {self.detach("--net", "none", self.hang) for _ in range(3)}
            self.assertEqual(len(names), 3)
            for name in names:
                self.assertRegex(name, "^hang-[0-9a-f]{4}$")
        self.succeed("kill", "web", *names)
        self.assertEqual(self.ps(), [])
        self.assertEqual(os.listdir(self.host.run), [])

    def test_no_descriptor_is_inherited(self):
        """Not those of `$(qvm run -d ...)`, and none that a shell left open."""
        ours, theirs = os.pipe()
        script = 'name=$("$@" 2>&1); echo "<$name>"'
        done = subprocess.run(["sh", "-c", script, "sh", harness.QVM, "run", "-q", "-d", "--net",
                               "nat", "--name", "web", self.hang], cwd=self.host.cwd,
                              capture_output=True, text=True, pass_fds=(theirs,), timeout=60)
        self.killed_with_test("web")
        os.close(theirs)
        self.assertEqual((done.returncode, done.stdout), (0, "<web>\n"))
        with open(ours, "rb") as pipe:
            self.assertEqual(pipe.read(), b"")  # nobody else has its other end

    def test_errors_before_the_guest_runs(self):
        for words, why in ((["--net", "none", "missing.raw"], "missing.raw.*No such file"),
                           (["--qemu-arg=-no-such-option", self.hang], "start QEMU: "),
                           (["--net", "nat,mtu=1", self.hang], "mtu")):
            self.assert_refused(self.qvm("run", "-q", "-d", *words), why)
            self.assertEqual(os.listdir(self.host.run), [])
        name = self.detach("--net", "none", self.hang)
        self.assert_refused(self.qvm("run", "-q", "-d", "--net", "none", "--name", name, self.hang),
                            rf"'{name}'.*running already \(pid {self.supervisor_of(name)}\)")

    def test_killed_or_interrupted_before_the_guest_runs(self):
        """Either there is a VM, or there is nothing."""
        left = {signal.SIGKILL: 0, signal.SIGINT: 0, signal.SIGTERM: 0}
        for number in left:
            for milliseconds in range(0, 110, 9):
                foreground = self.started("run", "-q", "-d", "--net", "nat", "--name", "web",
                                          self.hang)
                time.sleep(milliseconds / 1000)
                foreground.signal(number)
                status = foreground.wait()
                expected = {signal.SIGKILL: -9}.get(number, 128 + number)
                # Very early the signal has no handler yet.
                self.assertIn(status, (0, expected, -number))
                if status == 0:
                    self.assertEqual(foreground.out.text, "web\n")
                # A supervisor that has just been let go is on its own.
                gone = self.qvm("kill", "web").returncode != 0
                left[number] += not gone
                if status == 128 + number:
                    self.assertTrue(gone)
                # Who was killed lets go of its locks while it dies.
                self.wait_until(lambda: self.sweep() or not os.listdir(self.host.run))
        self.assert_host_as_before(5)
        self.assertLess(max(left.values()), 12, left)

    def test_timings_of_what_is_left_behind(self):
        """Written when the guest runs, not at its end."""
        path = self.host.files / "timings.json"
        self.addCleanup(path.unlink)
        self.detach("--net", "none", "--name", "web", f"--timings={path}", self.hang)
        self.assertIn("running", [phase["name"] for phase in json.loads(path.read_text())["phases"]])

    def test_timeout(self):
        self.detach("--net", "none", "--name", "web", "--timeout", "3s", self.hang)
        done = self.qvm("wait", "web")
        self.assertEqual((done.returncode, done.stdout), (124, "124\n"))

    def test_reader_of_its_console_is_none(self):
        """A guest that prints for ever, and nobody reads."""
        self.detach("--net", "none", "--name", "web", self.babble)
        log = self.host.run / "web" / "console.log"
        self.wait_until(lambda: log.stat().st_size > 100000, 60)
        self.assertEqual(json.loads(self.succeed("qmp", "web", "query-status"))["status"], "running")


class Verbs(harness.Test):
    def hanging(self, name):
        return self.detach("--net", "none", "--name", name, self.hang)

    def assert_says(self, done, status, out, *lines):
        self.assertEqual((done.returncode, done.stdout), (status, out), done.stderr)
        said = done.stderr.splitlines()
        self.assertEqual(len(said), len(lines), done.stderr)
        for line, pattern in zip(said, lines):
            self.assertRegex(line, f"^{pattern}$")

    def test_stop(self):
        for name in ("one", "two", "three"):
            self.hanging(name)
        start = time.monotonic()
        done = self.qvm("stop", "-t", "1.5", "one")
        self.assert_says(done, 0, "one\n",
                         "qvm: one: the guest did not power down within 1.5 s and was ended")
        self.assertLess(time.monotonic() - start, 10)
        with self.subTest("several, and one that is unknown"):
            done = self.qvm("stop", "-t", "0", "two", "unknown", "three")
            self.assertEqual((done.returncode, done.stdout), (125, "two\nthree\n"))
            self.assertRegex(done.stderr, "(?m)^qvm: VM 'unknown': there is none of that name$")
            self.assertRegex(done.stderr, "(?m)^hint: qvm ps -a")
        self.assertEqual(self.ps(), [])
        with self.subTest("what does not run"):
            self.create("--name", "box", "--net", "none", self.hang)
            for verb in ("stop", "kill", "pause", "resume", "restart", "console"):
                self.assert_refused(self.qvm(verb, "box"), "VM 'box': is not running",
                                    "qvm start box")
                self.assert_refused(self.qvm(verb, "unknown"), "VM 'unknown': there is none",
                                    "qvm ps -a")
            for bad in ("../x", "", ".", ".groups", "a/b", "x" * 64):
                self.assert_refused(self.qvm("stop", bad), "VM '")
        with self.subTest("times"):
            for bad in ("soon", "-1", "1y", ""):
                self.assert_refused(self.qvm("stop", "-t", bad, "box"), "--timeout|-t|-1")

    def test_an_impatient_stop(self):
        """The second need not wait as long as the first."""
        self.hanging("web")
        first = self.started("stop", "-t", "100", "web")
        self.wait_until(lambda: self.ps()[0]["state"] == "stopping")
        start = time.monotonic()
        self.assertEqual(self.qvm("stop", "-t", "1", "web").returncode, 0)
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual(first.wait(), 0)

    def test_kill_and_wait(self):
        self.hanging("web")
        waiting = [self.started("wait", "web") for _ in range(2)]
        time.sleep(0.3)
        self.assertEqual(self.succeed("kill", "web"), "web\n")
        for one in waiting:
            self.assertEqual((one.wait(), one.out.text, one.err.text), (137, "137\n", ""))
        self.assert_refused(self.qvm("wait", "web"), "VM 'web': there is none of that name")
        with self.subTest("of one that is stopped by many at once"):
            self.hanging("web")
            many = [self.started(*words, "web") for words in (
                ("stop", "-t", "0"), ("kill",), ("stop", "-t", "1"), ("wait",), ("kill",))]
            for one in many:
                self.assertIn(one.wait(), (0, 137, 125), one.err.text)
                if one.process.returncode == 125:
                    self.assertRegex(one.err.text, "^qvm: VM 'web': ")
        self.assertEqual(self.ps(), [])

    def test_a_reader_that_has_seen_enough_of_a_verb(self):
        """What was asked for is done all the same."""
        names = [self.hanging(name) for name in ("one", "two", "three", "four")]
        done = subprocess.run(["bash", "-c", '"$0" rm -f "$@" | head -n 1; echo "${PIPESTATUS[0]}"',
                               harness.QVM, *names], capture_output=True, text=True, timeout=30)
        self.assertRegex(done.stdout, r"^one\n(0|141)\n$")
        self.assertEqual((done.stderr, self.ps()), ("", []))

    def test_supervisor_dies_under_its_clients(self):
        self.hanging("web")
        clients = {words: self.started(*words, "web") for words in (
            ("wait",), ("logs", "-f"), ("console",), ("restart", "-t", "100"))}
        events = self.started("events", "--json")
        clients["logs", "-f"].out.expect(harness.STARTED, 30)
        self.wait_until(lambda: self.ps()[0]["state"] == "restarting")
        time.sleep(1)
        os.kill(self.supervisor_of("web"), signal.SIGKILL)
        start = time.monotonic()
        statuses = {words[0]: client.wait() for words, client in clients.items()}
        self.assertLess(time.monotonic() - start, 10)
        self.assertEqual(statuses, {"wait": 125, "logs": 0, "console": 0, "restart": 125})
        self.assertRegex(clients["wait",].err.text, "^qvm: VM 'web': ended, and did not say how\n$")
        self.assertRegex(clients["console",].err.text, "VM 'web' ended")
        events.out.expect('"died"', 30)
        events.signal(signal.SIGTERM)
        self.assertEqual(events.wait(), 143)
        self.assertEqual(os.listdir(self.host.run), [])

    def test_a_supervisor_that_does_not_answer(self):
        self.hanging("web")
        supervisor = self.supervisor_of("web")
        os.kill(supervisor, signal.SIGSTOP)
        start = time.monotonic()
        self.assert_refused(self.qvm("stop", "web", seconds=60), "'web': its supervisor does not answer",
                            "qvm kill web")
        self.assertLess(time.monotonic() - start, 25)
        done = self.qvm("rm", "-f", "web", seconds=60)
        self.assertEqual((done.returncode, done.stdout), (0, "web\n"))
        self.assertEqual(self.ps(), [])

    def test_verbs_while_a_vm_ends(self):
        """Gone is what was wanted; nobody is told of sockets."""
        for _ in range(10):
            self.hanging("web")
            many = [self.started(*words, "web") for words in (
                ("kill",), ("rm", "-f"), ("stop", "-t", "0"), ("rm", "-f"), ("kill",))]
            for one in many:
                if one.wait() != 0:
                    self.assertEqual(one.err.text, "qvm: VM 'web': there is none of that name\n"
                                     "hint: qvm ps -a lists those that are\n")
        self.create("--name", "box", "--net", "none", self.hang)
        for _ in range(10):
            self.succeed("start", "-q", "box")
            many = [self.started(*words, "box") for words in (
                ("wait",), ("kill",), ("wait",), ("wait",))]
            for one in many:
                self.assertIn((one.wait(), one.err.text), ((137, ""), (0, "")))
            self.assertEqual(self.qvm("wait", "box").returncode, 137)

    # --- lists ----------------------------------------------------------------------------------

    def test_ps(self):
        self.assertEqual(self.succeed("ps").split(), " ".join(HEADINGS).split())
        self.assertEqual(self.succeed("ps", "--json"), "[]\n")
        self.assertEqual(self.succeed("ps", "-q"), "")
        self.hanging("a")
        self.detach("--net", "nat", "--name", "long-name-of-a-vm", "-p", "0:80", "-p", "0:53/udp",
                    self.hang)
        self.create("--name", "box", "--net", "none", self.hang)
        with self.subTest("the table"):
            text = self.succeed("ps", "-a")
            self.assertNotIn("\x1b", text)
            lines = text.splitlines()
            columns = [lines[0].index(heading) for heading in HEADINGS]
            rows = [[line[at:end].strip() for at, end in zip(columns, [*columns[1:], None])]
                    for line in lines[1:]]
            self.assertEqual([row[:2] for row in rows],
                             [["a", "running"], ["box", "stopped"], ["long-name-of-a-vm", "running"]])
            self.assertEqual(rows[2][2:5], ["nat", "192.168.26.10",
                                             "-" if harness.ROOTLESS else "10.213.0.1"])
            self.assertRegex(rows[2][5], r"^127\.0\.0\.1:\d+->80, 127\.0\.0\.1:\d+->53/udp$")
            for row in rows:
                self.assertEqual(row[6], "hang.raw")
                self.assertRegex(row[7], " ago$")
            for line in lines:
                self.assertEqual(line, line.rstrip())
        self.assertEqual(self.succeed("ps", "-q"), "a\nlong-name-of-a-vm\n")
        self.assertEqual(self.succeed("ps", "-aq"), "a\nbox\nlong-name-of-a-vm\n")
        with self.subTest("JSON"):
            keys = {"name", "state", "pid", "qemu_pid", "group", "image", "net", "ports", "created"}
            vms = {vm["name"]: vm for vm in self.ps("-a")}
            for vm in vms.values():
                self.assertLessEqual(keys, set(vm))
                self.assertLessEqual({"mode", "subnet", "gateway", "address", "mac",
                                      "host_address"}, set(vm["net"]))
                self.assertRegex(vm["created"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
                self.assertEqual(vm["image"], str(self.hang))
            nat = vms["long-name-of-a-vm"]
            self.assertEqual((nat["net"]["subnet"], nat["net"]["gateway"], nat["net"]["mac"]),
                             ("192.168.26.0/24", "192.168.26.1", "52:54:00:a8:1a:0a"))
            self.assertEqual([(port["guest_port"], port["protocol"]) for port in nat["ports"]],
                             [(80, "tcp"), (53, "udp")])
            self.assertIsNone(nat["group"])
            self.assertEqual((vms["box"]["pid"], vms["box"]["qemu_pid"]), (None, None))
            for vm in (nat, vms["a"]):
                for key, name in (("pid", "qvm"), ("qemu_pid", "qemu-system-x86")):
                    with open(f"/proc/{vm[key]}/comm") as file:
                        self.assertTrue(file.read().startswith(name[:10]))
        with self.subTest("inspect"):
            told = json.loads(self.succeed("inspect", "box", "a"))
            self.assertEqual([vm["name"] for vm in told], ["box", "a"])
            for vm in told:
                self.assertLessEqual(keys, set(vm))
            done = self.qvm("inspect", "unknown", "a", "other")
            self.assertEqual(done.returncode, 125)
            self.assertRegex(done.stderr, "^qvm: VM 'unknown'.*none.*\nhint: qvm ps -a")
            self.assertEqual([vm["name"] for vm in json.loads(done.stdout)], ["a"])
            self.assert_refused(self.qvm("inspect", "unknown"), "'unknown'.*none", "qvm ps -a")
        with self.subTest("a reader that has seen enough"):
            done = subprocess.run(["bash", "-c", '"$0" inspect a | head -c 1; '
                                   'echo "${PIPESTATUS[0]}"', harness.QVM],
                                  capture_output=True, text=True, timeout=30)
            self.assertRegex(done.stdout, r"^\[(0|141)\n$")
            self.assertEqual(done.stderr, "")

    def test_ps_while_vms_come_and_go(self):
        """Nobody sees half of one."""
        process = subprocess.Popen(
            ["sh", "-c", 'for i in 1 2 3 4 5 6 7 8; do "$0" run -q -d --net none --name web "$1" && '
             '"$0" kill web; done', harness.QVM, self.hang], cwd=self.host.cwd,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seen = set()
        while process.poll() is None:
            for vm in self.ps():
                seen.add(vm["state"])
                self.assertEqual(vm["name"], "web")
                self.assertGreater(vm["pid"], 0)
            self.succeed("ps")
            done = self.qvm("inspect", "web")
            self.assertTrue(done.returncode == 0 or "none of that name" in done.stderr, done.stderr)
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        self.assertLessEqual(seen, {"starting", "running", "stopping"})

    # --- gc -------------------------------------------------------------------------------------

    def test_gc(self):
        self.assertEqual(self.succeed("gc"), "")
        for name in ("one", "two"):
            self.detach("--net", "nat", "--name", name, self.hang)
        os.kill(self.supervisor_of("one"), signal.SIGKILL)
        time.sleep(0.5)
        self.assertEqual(self.succeed("gc"), "VM 'one'\n")
        self.assertEqual(self.succeed("gc"), "")
        self.assertEqual([vm["name"] for vm in self.ps()], ["two"])
        if not harness.ROOTLESS:
            self.assertIn("uplink0/forwarding = 1", self.diff())
        os.kill(self.supervisor_of("two"), signal.SIGKILL)
        time.sleep(0.5)
        with self.subTest("two at once"):
            sweepers = [self.started("gc") for _ in range(4)]
            for sweeper in sweepers:
                self.assertEqual((sweeper.wait(), sweeper.err.text), (0, ""))
            told = "".join(sweeper.out.text for sweeper in sweepers)
            self.assertEqual(told.count("VM 'two'"), 1)
            self.assertEqual(told.count("forwarding of 'uplink0'"), 0 if harness.ROOTLESS else 1)
        self.assert_host_as_before(2)

    def test_gc_is_not_fooled(self):
        ghost = self.host.run / "ghost"
        ghost.mkdir(mode=0o700)
        (ghost / "lock").write_text(str(os.getpid()))  # as when a pid is used again
        self.assertEqual(self.ps(), [])  # which sweeps
        self.assertFalse(ghost.exists())
        with self.subTest("a file of somebody else in it"):
            ghost.mkdir(mode=0o700)
            for name in ("lock", "precious"):
                (ghost / name).write_text("1")
            self.assertEqual(self.succeed("gc"), "")
            self.assertEqual(sorted(os.listdir(ghost)), ["lock", "precious"])
            self.assertEqual(self.ps(), [])
            for name in ("lock", "precious"):
                (ghost / name).unlink()
            ghost.rmdir()
        with self.subTest("a link"):
            (self.host.files / "elsewhere").mkdir()
            (self.host.files / "elsewhere" / "lock").write_text("1")
            (self.host.run / "link").symlink_to(self.host.files / "elsewhere")
            self.assertEqual(self.succeed("gc"), "")
            self.assertEqual(os.listdir(self.host.files / "elsewhere"), ["lock"])
            self.assert_refused(self.qvm("run", "-q", "-d", "--net", "none", "--name", "link",
                                         self.hang), "link")
            (self.host.run / "link").unlink()
            (self.host.files / "elsewhere" / "lock").unlink()
            (self.host.files / "elsewhere").rmdir()
        with self.subTest("sockets of listeners that were killed"):
            listener = self.started("events")
            self.wait_until(lambda: list(self.host.run.glob(".events/*")))
            listener.signal(signal.SIGKILL)
            listener.wait()
            self.qvm("gc")
            self.assertEqual(os.listdir(self.host.run), [])

    # --- events ---------------------------------------------------------------------------------

    def test_no_event_is_lost(self):
        """By one who was not listening for a while."""
        self.hanging("web")
        stream = self.started("events", "--json")
        self.wait_until(lambda: list(self.host.run.glob(".events/*")))
        stream.signal(signal.SIGSTOP)
        client = self.control("web")
        for _ in range(100):
            client.execute("stop")
            client.execute("cont")
        self.succeed("kill", "web")
        stream.signal(signal.SIGCONT)
        stream.out.expect('"stopped"', 30)
        stream.signal(signal.SIGTERM)
        self.assertEqual(stream.wait(), 143)
        told = [json.loads(line)["event"] for line in stream.out.text.splitlines()]
        self.assertEqual(told, 100 * ["paused", "resumed"] + ["stopped"])

    def test_events(self):
        words = self.started("events")
        stream = self.started("events", "--json")
        self.wait_until(lambda: len(list(self.host.run.glob(".events/*"))) == 2)
        self.create("--name", "box", "--net", "none", *self.boot_files())
        self.succeed("start", "-q", "box")
        self.killed_with_test("box")
        stream.out.expect('"agent-up"', 120)
        self.succeed("pause", "box")
        self.succeed("resume", "box")
        self.assertEqual(self.qvm("restart", "-t", "60", "box", seconds=90).returncode, 0)
        stream.out.expect('"agent-up"', 120)
        shell = self.attach("box")
        shell.type("\n")
        shell.wait_for_prompt()
        waiting = self.started("wait", "box")
        shell.type("echo c >/proc/sysrq-trigger\n")
        stream.out.expect('"stopped"[^\n]*\n', 60)
        self.assertEqual(waiting.wait(), 123)
        self.assertEqual(waiting.out.text, "123\n")
        self.hanging("web")
        os.kill(self.supervisor_of("web"), signal.SIGKILL)
        stream.out.expect('"died"[^\n]*\n', 30)
        self.succeed("rm", "box")
        stream.out.expect('"removed"[^\n]*\n', 30)
        for one in (words, stream):
            one.signal(signal.SIGINT)
            self.assertEqual((one.wait(), one.err.text), (130, ""))
        told = [json.loads(line) for line in stream.out.text.splitlines()]
        for event in told:
            self.assertLessEqual({"event", "name", "time"}, set(event))
            self.assertRegex(event["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertEqual([(event["name"], event["event"]) for event in told], [
            *(("box", event) for event in ("created", "started", "agent-up", "paused", "resumed",
                                           "restarted", "agent-up", "panicked", "stopped")),
            ("web", "started"), ("web", "died"), ("box", "removed")])
        stopped = told[8]
        self.assertEqual(stopped["exit_status"], 123)
        self.assertIn("panicked", stopped["message"])
        lines = words.out.text.splitlines()
        self.assertEqual([line.split()[1:3] for line in lines],
                         [[event["name"], event["event"]] for event in told])
        self.assertRegex(lines[8], "  exit_status=123  message=")

    # --- logs -----------------------------------------------------------------------------------

    def test_logs(self):
        self.detach("--net", "none", "--name", "web", *self.boot_files())
        following = self.started("logs", "-f", "web")
        following.out.expect("demo# ", 120)
        shell = self.attach("web")
        shell.type("\n")
        shell.wait_for_prompt()
        shell.type("echo from-$((40 + 2))\n")
        following.out.expect("from-42", 30)  # while it runs
        text = self.succeed("logs", "web")
        self.assertIn("demo: busybox", text)
        self.assertIn("from-42", text)
        with self.subTest("a reader that has seen enough"):
            done = subprocess.run(["bash", "-c", '"$0" logs -f web | head -n 1; '
                                   'echo "${PIPESTATUS[0]}"', harness.QVM],
                                  capture_output=True, text=True, timeout=120,
                                  stdin=subprocess.DEVNULL)
            self.assertRegex(done.stdout, r"\n141\n$")
            self.assertEqual(done.stderr, "")
        waiting = self.started("wait", "web")
        shell.type("seq 1 3000; poweroff\n")
        self.assertEqual(following.wait(60), 0)
        self.assertRegex(following.out.text, r"\n2999\r*\n3000\r*\n")
        self.assertEqual(following.err.text, "")
        self.assertEqual((waiting.wait(), waiting.out.text), (0, "0\n"))
        self.assert_refused(self.qvm("logs", "web"), "'web'.*none of that name", "qvm ps -a")

    def test_stop_of_a_guest_that_obeys(self):
        self.detach("--net", "none", "--name", "web", *self.boot_files())
        shell = self.attach("web")
        shell.wait_for_prompt()
        for paused in (True,):
            self.succeed("pause", "web")  # its CPUs run again, to see the button
            waiting = self.started("wait", "web")
            time.sleep(0.3)
            done = self.qvm("stop", "-t", "60", "web", seconds=90)
            self.assert_says(done, 0, "web\n", "qvm: web: the guest powered down")
            self.assertEqual((waiting.wait(), waiting.out.text), (0, "0\n"))


if __name__ == "__main__":
    harness.main()
