"""The control socket, to clients that are not ours and to those who mean no good; and the commands
that go through it."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import unittest

import harness
import qmp_client

MEBIBYTE = 2**20


def resident_kb(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Control(harness.Test):
    def setUp(self):
        super().setUp()
        self.name = self.detach("--net", "none", "--name", "web", self.hang)
        self.path = self.host.run / "web" / "control.sock"

    def raw(self):
        """A connection on which nothing was said yet."""
        client = qmp_client.Client(self.path, negotiate=False)
        self.addCleanup(client.close)
        return client

    def assert_answers(self):
        client = qmp_client.Client(self.path)
        self.assertEqual(client.execute("query-status")["return"]["status"], "running")
        client.close()

    # --- clients of others ----------------------------------------------------------------------

    @unittest.skipUnless(shutil.which("socat"), "there is no socat")
    def test_socat(self):
        lines = "\n".join(['{"execute": "qmp_capabilities"}', '{"execute": "query-status", "id": 7}',
                           '{"execute":"qvm-inspect"}', '{"execute": "no-such-command"}', ""])
        done = subprocess.run(["socat", "-t", "10", "-", f"UNIX-CONNECT:{self.path}"], input=lines,
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertIn("version", told[0]["QMP"])
        self.assertEqual(told[1], {"return": {}})
        self.assertEqual((told[2]["return"]["status"], told[2]["id"]), ("running", 7))
        self.assertEqual(told[3]["return"]["name"], "web")
        self.assertEqual(told[4]["error"]["class"], "CommandNotFound")
        self.assertEqual(len(told), 5)

    def test_as_qemu_speaks(self):
        client = self.raw()
        self.assertIn("QMP", client.receive())
        self.assertEqual(client.execute("query-status")["error"]["class"], "CommandNotFound")
        self.assertEqual(client.execute("qmp_capabilities", {"enable": []}, id={"a": [1]}),
                         {"return": {}, "id": {"a": [1]}})
        for id_ in (0, "", None, [], "x" * 1000):
            self.assertEqual(client.execute("query-name", id=id_)["id"], id_)
        answer = client.execute("device_del", {"id": "no-such-device"})
        self.assertEqual(answer["error"]["class"], "DeviceNotFound")
        for bad in ({"nothing": "no-such"}, 7, "x"):
            self.assertIn("error", client.execute("query-name", bad))
        answer = client.execute("human-monitor-command", {"command-line": "info version"})
        self.assertIn(".", answer["return"])
        for command in ("qvm-nothing", "qvm-", ""):
            self.assertEqual(client.execute(command)["error"]["class"], "CommandNotFound")
        for bad in ({"timeout": "soon"}, {"timeout": -1}, {"timeout": 1e300}, {"timeout": []}):
            for command in ("qvm-stop", "qvm-restart"):
                self.assertEqual(client.execute(command, bad)["error"]["class"], "GenericError")
        self.assert_answers()

    def test_many_requests_in_one_packet(self):
        client = self.control("web")
        client.send("".join(f'{{"execute":"query-name","id":{i}}}\r\n' for i in range(500)))
        self.assertEqual([client.answer()["id"] for _ in range(500)], list(range(500)))
        client.send('{"execute":\n"query-name"}')  # JSON needs no line of its own, but we do
        client.send('\n{"execute":"query-name","id":"last"}\n')
        while (answer := client.answer()).get("id") != "last":
            self.assertIn("error", answer)

    def test_garbage(self):
        for text in (b"\n\n\n", b"{}\n", b"[]\n", b"7\n", b"nonsense\n", b'{"execute": 7}\n',
                     b'{"execute": "query-name", "bogus": 1}\n', b"\xff\xfe\x00\x01\n",
                     b"[" * 100000 + b"\n", b'{"execute":"\\ud800"}\n', b"GET / HTTP/1.1\r\n\r\n",
                     bytes(range(256)) * 100 + b"\n"):
            with self.subTest(text[:20]):
                client = self.control("web")
                client.send(text)
                client.send(b'{"execute": "query-name", "id": "after"}\n')
                while (answer := client.answer()) is not None and answer.get("id") != "after":
                    self.assertIn("error", answer)
                self.assert_answers()

    def test_a_line_without_an_end(self):
        client = self.control("web")
        pid = self.supervisor_of("web")
        before = resident_kb(pid)
        try:
            for _ in range(64):
                client.send(b"x" * MEBIBYTE)
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.assertTrue(client.is_closed())
        self.assertLess(resident_kb(pid) - before, 32 * 1024)
        self.assert_answers()

    def test_half_close(self):
        client = self.control("web")
        client.request("query-name", id=1)
        client.request("query-status", id=2)
        client.socket.shutdown(socket.SHUT_WR)
        self.assertEqual([client.answer()["id"] for _ in range(2)], [1, 2])
        self.assertIsNone(client.answer())
        with self.subTest("also what waits"):
            client = self.control("web")
            client.request("qvm-wait")
            client.socket.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            self.succeed("kill", "web")
            self.assertEqual(client.answer()["return"]["exit-status"], 137)

    def test_one_who_never_reads(self):
        """Three clients; events and answers pile up for one of them, and the others work."""
        deaf = self.control("web")
        pid = self.supervisor_of("web")
        working = [self.control("web") for _ in range(2)]
        before = resident_kb(pid)
        for i in range(200):
            self.assertEqual(working[0].execute("stop")["return"], {})
            self.assertEqual(working[1].execute("cont")["return"], {})
        for client in working:
            client.event("STOP")
            client.event("RESUME")
            client.event("QVM_PAUSED")
            client.event("QVM_RESUMED")
        deaf.socket.settimeout(2)
        try:
            for i in range(20000):
                deaf.request("query-qmp-schema", id=i)  # its answer has 200 kB
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        self.assertEqual(working[0].execute("query-status")["return"]["status"], "running")
        self.assertLess(resident_kb(pid) - before, 64 * 1024)
        deaf.close()
        self.assert_answers()

    def test_nothing_grows(self):
        pid = self.supervisor_of("web")

        def connect(count):
            for i in range(count):
                client = qmp_client.Client(self.path, negotiate=i % 5 != 0)
                if i % 5 == 1:
                    client.execute("query-status")
                elif i % 5 == 2:
                    client.request("qvm-wait")  # and goes while it waits
                elif i % 5 == 3:
                    client.send(b'{"execute": "query-')  # in the middle of a word
                elif i % 5 == 4:
                    client.execute("qvm-inspect")
                    client.socket.shutdown(socket.SHUT_WR)
                client.close()
            self.assert_answers()

        connect(100)
        self.wait_until(lambda: descriptors(pid) < 60)
        before = descriptors(pid), resident_kb(pid)
        connect(300)
        self.wait_until(lambda: descriptors(pid) <= before[0])
        self.assertLess(resident_kb(pid) - before[1], 2048)

    def test_more_clients_than_are_served(self):
        clients = []
        for _ in range(300):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(self.path))
            clients.append(client)
            self.addCleanup(client.close)
        self.assert_answers()  # those who only stand about make room
        for client in clients:
            client.close()
        self.assertEqual(self.succeed("qmp", "web", "query-name"), '{"name":"web"}\n')

    def test_console_clients_at_their_worst(self):
        """Those of the console's socket, too: many, deaf, talkative."""
        pid = self.supervisor_of("web")
        clients = []
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(self.host.run / "web" / "console.sock"))
            client.settimeout(1)
            clients.append(client)
            self.addCleanup(client.close)
        before = resident_kb(pid)
        try:  # this guest reads nothing
            for _ in range(16):
                clients[0].sendall(b"x" * MEBIBYTE)
        except (TimeoutError, BrokenPipeError):
            pass
        self.assertLess(resident_kb(pid) - before, 8 * 1024)
        self.assert_answers()
        for client in clients:
            client.close()
        self.wait_until(lambda: descriptors(pid) < 60)
        self.succeed("kill", "web")

    def test_the_end_while_clients_are_connected(self):
        waiting = [self.control("web") for _ in range(3)]
        for client in waiting:
            client.request("qvm-wait")
        idle = self.control("web")
        self.raw()
        half = self.control("web")
        half.send(b'{"execute"')
        start = time.monotonic()
        self.succeed("kill", "web")
        self.assertLess(time.monotonic() - start, 5)
        for client in waiting:
            answer = client.answer()["return"]
            self.assertEqual((answer["exit-status"], answer["how"]), (137, "ended"))
        self.assertEqual(idle.event("QVM_STOPPED")["data"]["exit_status"], 137)
        self.assertTrue(idle.is_closed())
        self.assertTrue(half.is_closed())

    # --- commands -------------------------------------------------------------------------------

    def test_qmp(self):
        self.assertEqual(json.loads(self.succeed("qmp", "web", "query-status"))["status"], "running")
        told = self.succeed("qmp", "web", "human-monitor-command", '{"command-line": "info name"}')
        self.assertEqual(json.loads(told), "web\r\n")
        self.assert_refused(self.qvm("qmp", "web", "no-such-command"),
                            "'web': no-such-command: .*has not been found")
        self.assert_refused(self.qvm("qmp", "web", "device_del", '{"id": "nic"}'), "'nic' not found")
        for bad in ("{", "[]", "7", "{'a': 1}", '{"a": 1} x'):
            self.assert_refused(self.qvm("qmp", "web", "query-name", bad), "JSON object")
        self.assert_refused(self.qvm("qmp", "unknown", "query-name"), "'unknown'.*none of that name",
                            "qvm ps")
        self.assert_refused(self.qvm("qmp", "web"), "COMMAND")
        self.assert_refused(self.qvm("qmp", "web", ""), "COMMAND is empty")
        self.assert_answers()
        self.assertEqual(self.succeed("qmp", "web", "quit"), "{}\n")
        self.wait_until(lambda: self.ps() == [])

    def test_pause_and_resume(self):
        self.assertEqual(self.succeed("pause", "web"), "web\n")
        self.assertEqual([vm["state"] for vm in self.ps()], ["paused"])
        self.succeed("pause", "web")  # it is what was wanted
        self.assertEqual(json.loads(self.succeed("qmp", "web", "query-status"))["running"], False)
        self.succeed("resume", "web")
        self.assertEqual([vm["state"] for vm in self.ps()], ["running"])
        self.succeed("resume", "web")
        done = self.qvm("pause", "web", "unknown")
        self.assertEqual((done.returncode, done.stdout), (125, "web\n"))
        self.assertRegex(done.stderr, "^qvm: VM 'unknown'.*\nhint: ")
        with self.subTest("paused VMs can be killed"):
            self.succeed("kill", "web")

    def test_restart_of_a_guest_that_ignores_the_button(self):
        self.wait_until(lambda: self.succeed("logs", "web").count(harness.STARTED) == 1)
        start = time.monotonic()
        done = self.qvm("restart", "-t", "2", "web")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (0, "web\n", "qvm: web: the guest was reset\n"))
        self.assertGreater(time.monotonic() - start, 1.9)
        self.wait_until(lambda: self.succeed("logs", "web").count(harness.STARTED) == 2)
        done = self.qvm("restart", "-t", "0", "web")
        self.assertEqual(done.returncode, 0)
        self.wait_until(lambda: self.succeed("logs", "web").count(harness.STARTED) == 3)
        self.assertEqual([vm["state"] for vm in self.ps()], ["running"])

    def test_restart_at_the_same_time_as_others(self):
        first = self.started("restart", "-t", "20", "web")
        self.wait_until(lambda: self.ps()[0]["state"] == "restarting")
        self.assert_refused(self.qvm("restart", "web"), "'web'.*being restarted already")
        start = time.monotonic()
        self.succeed("kill", "web")
        self.assertLess(time.monotonic() - start, 5)
        self.assertEqual(first.wait(), 125)
        self.assertRegex(first.err.text, "^qvm: .*'web'.*ended")

    def test_stop_while_it_is_restarted(self):
        first = self.started("restart", "-t", "60", "web")
        self.wait_until(lambda: self.ps()[0]["state"] == "restarting")
        start = time.monotonic()
        self.assertEqual(self.qvm("stop", "-t", "3", "web").returncode, 0)
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual(first.wait(), 125)
        self.assertRegex(first.err.text, "^qvm: .*'web'.*stopped")

    def test_commands_at_the_same_time(self):
        """All are answered, whatever the order."""
        failures = []

        def work(*words):
            for _ in range(5):
                done = self.qvm(*words)
                if done.returncode != 0:
                    failures.append(done.stderr)

        threads = [threading.Thread(target=work, args=words) for words in (
            ("pause", "web"), ("resume", "web"), ("qmp", "web", "query-name"), ("ps",),
            ("inspect", "web"), ("logs", "web"), ("gc",))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(failures, [])
        self.succeed("resume", "web")
        self.assert_answers()


class RealGuests(harness.Test):
    def test_restart_boots_again(self):
        self.detach("--net", "none", "--name", "web", *self.boot_files())
        shell = self.attach("web")
        shell.wait_for_prompt()
        shell.sh("touch /tmp/first-boot")
        (before,) = self.ps()
        for paused in (False, True):
            with self.subTest(paused=paused):
                if paused:
                    self.succeed("pause", "web")
                done = self.qvm("restart", "-t", "60", "web", seconds=90)
                self.assertEqual((done.returncode, done.stdout, done.stderr),
                                 (0, "web\n", "qvm: web: the guest powered down and boots again\n"))
                shell.out.expect("demo: busybox", 120)
                shell.wait_for_prompt()
                self.assertNotEqual(shell.sh("ls /tmp/first-boot 2>&1")[1], 0)
                (after,) = self.ps()
                self.assertEqual((after["pid"], after["qemu_pid"], after["state"]),
                                 (before["pid"], before["qemu_pid"], "running"))
        self.assertEqual(self.succeed("logs", "web").count("demo: busybox"), 3)
        with self.subTest("and can be stopped as ever"):
            done = self.qvm("stop", "web")
            self.assertEqual(done.stderr, "qvm: web: the guest powered down\n")


if __name__ == "__main__":
    harness.main()
