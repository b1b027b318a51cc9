"""qvm run IMAGE -- COMMAND: a command in a machine of its own."""

import json
import os
import random
import signal
import subprocess
import termios
import time

import harness
import played_host


LONG_BOOT = "20s"  # that no guest takes, also beside other tests


class RunCommand(harness.Test):
    def run_command(self, *words, options=(), stdin=subprocess.DEVNULL, seconds=90):
        """As bytes."""
        command = [harness.QVM, "run", "-q", "--net", "none", *map(str, self.boot_files()),
                   *map(str, options), "--", *words]
        if isinstance(stdin, bytes):
            return subprocess.run(command, input=stdin, capture_output=True, timeout=seconds)
        return subprocess.run(command, stdin=stdin, capture_output=True, timeout=seconds)

    def start_command(self, *words, options=()):
        return self.start("-q", "--net", "none", *self.boot_files(), *options, "--", *words)

    def result(self):
        return json.loads((self.host.files / "result.json").read_text())

    def with_result(self):
        return "--result", self.host.files / "result.json"

    def assert_last_lines(self, text, first, *ending):
        """The error, and what the console said, which nobody saw."""
        lines = text.splitlines()
        self.assertRegex(lines[0], f"^qvm: {first}$")
        self.assertEqual(lines[1], "qvm: the console's last lines:")
        self.assertTrue(all(line.startswith("    ") for line in lines[2:]), text)
        for words in ending:
            self.assertIn(words, text)

    @harness.needs_root("/dev/kvm is root's on a host that has no group for it")
    def test_kvm_with_a_cpu_that_it_takes(self):
        """Also one that shows what it refuses; where KVM's guests hang, a boot comes to a time-out."""
        try:
            os.close(os.open("/dev/kvm", os.O_RDWR))
        except OSError as error:
            self.skipTest(f"/dev/kvm: {error.strerror}")
        info = self.host.files / "cpuinfo"
        with open("/proc/cpuinfo") as file:
            info.write_text(file.read().replace("\nflags\t\t: ", "\nflags\t\t: vmx "))
        self.addCleanup(info.unlink)
        done = self.qvm("run", "-q", "--net", "none", "--accel", "kvm", "--boot-timeout", "3s", *self.boot_files(),
                        "--", "true", before=("unshare", "-m", "sh", "-c",
                                              f'mount --bind {info} /proc/cpuinfo; exec "$@"', "sh"), seconds=60)
        if done.returncode != 0:
            self.assertRegex(done.stderr, "^qvm: --boot-timeout: phase '(firmware|kernel|agent)'")
            self.assertEqual(done.returncode, 124)

    def test_streams_and_status(self):
        data = random.Random(1).randbytes(1024 * 1024)
        done = self.run_command(
            "sh", "-c", 'tee /tmp/x; cat /tmp/x >&2; printf "$A|$(pwd)" >&2; exit 7',
            options=("-i", "-e", "A=1 2", "-w", "/tmp", "--timings", *self.with_result()),
            stdin=data)
        self.assertEqual(done.returncode, 7)
        self.assertEqual(done.stdout, data)
        self.assertEqual(done.stderr[:len(data)], data)
        rest = done.stderr[len(data):].decode()
        self.assertTrue(rest.startswith("1 2|/tmp"), rest)
        self.assertRegex(rest, r"\nguest-ready +[0-9.]+\ncommand +[0-9.]+\n")
        result = self.result()
        self.assertEqual((result["exit_status"], result["failed"], result["message"]),
                         (7, "command", ""))
        self.assertEqual(result["vm"]["net"]["mode"], "none")
        self.assertIn("command", [phase["name"] for phase in result["phases"]])

    def test_the_network_is_up(self):
        said = self.qvm("run", "-q", "--net", "nat", self.demo, "--", "wget", "-q", "-O", "-",
                        f"http://{played_host.SERVICE_NAME}/", seconds=60)
        self.assertEqual((said.returncode, said.stderr), (0, ""))
        self.assertRegex(said.stdout, "^you are ")

    def test_it_has_no_console(self):
        """What the guest prints elsewhere is the log's; stdin is not there without -i."""
        done = self.run_command("sh", "-c", "cat; echo to the console >/dev/ttyS0; kill -TERM $$",
                                stdin=b"x")
        self.assertEqual((done.returncode, done.stdout, done.stderr),
                         (128 + signal.SIGTERM, b"", b""))

    def test_what_cannot_be_run(self):
        done = self.run_command("no-such-command", options=self.with_result())
        self.assertEqual((done.returncode, done.stdout), (127, b""))
        self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)
        self.assertIn(b"no-such-command", done.stderr)
        self.assertEqual(self.result()["failed"], "command")
        self.assertEqual(self.run_command("/etc").returncode, 126)

    def test_signals(self):
        with self.subTest("the first is the command's"):
            vm = self.start_command("sh", "-c", "trap 'echo caught; exit 9' TERM; echo up; "
                                    "while :; do sleep 0.1; done")
            vm.out.expect("up", 60)
            vm.signal(signal.SIGTERM)
            self.assertEqual(vm.wait(), 9)
            self.assertIn("caught", vm.out.text)
        with self.subTest("the second ends the VM"):
            vm = self.start_command("sh", "-c", "trap '' INT; echo up; while :; do sleep 0.1; done",
                                    options=self.with_result())
            vm.out.expect("up", 60)
            vm.signal(signal.SIGINT)
            time.sleep(0.3)
            vm.signal(signal.SIGINT)
            self.assertEqual(vm.wait(), 128 + signal.SIGINT)
            self.assertEqual(self.result()["failed"], "signal")
        with self.subTest("so does the first, before there is a command"):
            vm = self.start_command("true")
            time.sleep(1)
            vm.signal(signal.SIGTERM)
            self.assertEqual(vm.wait(), 128 + signal.SIGTERM)
        with self.subTest("a reader that is gone"):
            script = ['"$@" | head -n 1', "sh", harness.QVM, "run", "-q", "--net", "none",
                      *map(str, self.boot_files()), "--", "yes"]
            done = subprocess.run(["sh", "-c", *script], capture_output=True, timeout=60)
            self.assertEqual((done.stdout, done.stderr), (b"y\n", b""))

    def test_the_guest_goes_away(self):
        ends = (("poweroff -f", "the guest powered off while its command ran", "Power down"),
                ("reboot -f", "run 'sh' in the guest: the guest restarted", "Restarting"),
                ("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
                 "the guest panicked: Kernel panic - not syncing: sysrq triggered crash", "RIP"))
        for command, error, last in ends:
            with self.subTest(command):
                done = self.run_command("sh", "-c", f"echo up; {command}; sleep 60",
                                        options=self.with_result())
                self.assertEqual((done.returncode, done.stdout), (123, b"up\n"))
                self.assert_last_lines(done.stderr.decode(), error, last)
                self.assertEqual(self.result()["failed"], "guest")

    def test_time_outs_name_the_phase(self):
        with self.subTest("kernel"):
            done = self.qvm("run", "-q", "--net", "none", "--boot-timeout", "2s", self.hang, "--",
                            "true", seconds=60)
            self.assertEqual(done.returncode, 124)
            self.assert_last_lines(done.stderr, "--boot-timeout: phase 'kernel': the guest was "
                                   "still booting after 2 s", harness.STARTED)
        with self.subTest("agent"):
            files = self.boot_files()
            files[-1] += " rdinit=/bin/sh"
            done = self.qvm("run", "-q", "--net", "none", *files, "--timeout", LONG_BOOT,
                            *self.with_result(), "--", "true", seconds=60)
            self.assertEqual(done.returncode, 124)
            self.assert_last_lines(done.stderr, "--timeout: phase 'agent': the guest is up, and no "
                                   "guest agent answered after 20 s")
            self.assertEqual(self.result()["failed"], "timeout")
        with self.subTest("command"):
            done = self.run_command("sleep", "1000", options=("--timeout", LONG_BOOT))
            self.assertEqual(done.returncode, 124)
            self.assert_last_lines(done.stderr.decode(), "--timeout: phase 'command': the command "
                                   "still ran after 20 s")
        with self.subTest("--boot-timeout is over with the boot"):
            done = self.run_command("sleep", "21", options=("--boot-timeout", LONG_BOOT))
            self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_what_is_written_stays_with_persist(self):
        """Between the boot loader and the partition there is room."""
        disk = self.copy_of_demo("qcow2", "persist.qcow2")
        self.addCleanup(os.unlink, disk)
        write = ["sh", "-c", "echo kept | dd of=/dev/vda bs=512 seek=100 2>/dev/null; exit 3"]
        done = self.qvm("run", "-q", "--net", "none", "--persist", disk, "--", *write, seconds=60)
        self.assertEqual((done.returncode, done.stderr), (3, ""))
        read = ["sh", "-c", "dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null | head -n 1"]
        done = self.qvm("run", "-q", "--net", "none", disk, "--", *read, seconds=60)
        self.assertEqual((done.returncode, done.stdout), (0, "kept\n"))

    def test_the_result_of_a_run_that_never_was(self):
        done = self.qvm("run", *self.with_result(), "/none.qcow2", "--", "true")
        self.assert_refused(done, "/none.qcow2")
        result = self.result()
        self.assertEqual((result["exit_status"], result["failed"]), (125, "qvm"))
        self.assertIn("/none.qcow2", result["message"])
        self.assert_refused(self.qvm("run", "--result", "/none/x", self.hang), "--result '/none/x'")

    def test_on_a_terminal(self):
        vm = self.start_on_terminal("-q", "--net", "none", *self.boot_files(), "-it", "--", "sh")
        vm.wait_for_prompt()
        self.assertTrue(vm.is_raw())
        terminal = vm.sh("tty")[0].strip()
        vm.resize(44, 111)
        size = "exec", self.ps()[0]["name"], "stty", "-F", terminal, "size"
        self.wait_until(lambda: self.succeed(*size) == "44 111\n")
        vm.type("\n")
        vm.wait_for_prompt(30)
        vm.type("exit 6\n")
        self.assertEqual(vm.wait(), 6)
        self.assertEqual(termios.tcgetattr(vm.slave), vm.settings)

    def test_audited(self):
        done = self.run_command("sh", "-c", "exit 5", options=("--audit",))
        self.assertEqual((done.returncode, done.stderr), (5, b""))


if __name__ == "__main__":
    harness.main()
