"""How a VM ends: its exit status, its one line, and nothing left."""

import os
import signal
import time

import harness

KILLED = 2  # seconds until nothing is left of a qvm that was killed
NOTHING_RUNS = ("links", "addresses", "routes", "policy rules", "nft ruleset",
                "network namespaces", "processes", "mounts", "cache directory", "deleted files",
                "disk space", "abstract sockets")


# What SeaBIOS' log and QEMU's big lock come to when the CPUs are faster than the monitor. A socket
# holds some 300 of such writes.
TALKATIVE_QEMU = """
import socket
monitor, firmware = (socket.socket(fileno=number) for number in (3, 6))
lines = monitor.makefile()
def say(text):
    monitor.sendall(text.encode() + b"\\n")
say('{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, '
    '"capabilities": []}}')
for line in lines:
    if '"cont"' in line:
        for _ in range(3000):
            firmware.send(b".")
    id = line.split('"id":')[1].rstrip("}\\n").split(",")[0]
    say('{"return": {}, "id": ' + id + '}')
    if '"cont"' in line:
        break
say('{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, '
    '"timestamp": {"seconds": 0, "microseconds": 0}}')
"""


class Ends(harness.Test):
    def start_hanging(self, *options):
        """A VM whose guest has just started and does nothing."""
        vm = self.start("-q", *options, self.hang)
        vm.out.expect(harness.STARTED, 60)
        return vm

    def assert_says(self, vm, *lines):
        """stderr has these lines (patterns) and no others."""
        self.assertEqual(len(vm.errors()), len(lines), vm.err.text)
        for said, line in zip(vm.errors(), lines):
            self.assertRegex(said, f"^qvm: {line}$")

    def test_ignored_signals_stay_ignored(self):
        """As nohup and a script's background jobs have them."""
        vm = self.start("-q", "--net", "none", self.hang,
                        before=["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh"])
        vm.out.expect(harness.STARTED, 60)
        vm.signal(signal.SIGHUP)
        vm.signal(signal.SIGINT)
        vm.signal(signal.SIGTERM)
        vm.signal(signal.SIGTERM)
        time.sleep(0.1)
        vm.signal(signal.SIGTERM)
        self.assertEqual(vm.wait(), 128 + signal.SIGTERM)

    # --- kill -9 --------------------------------------------------------------------------------

    def test_kill_in_mid_run(self):
        vms = [self.start_hanging("--net", net, "--name", f"vm{number}")
               for number, net in enumerate(harness.NETS)]
        self.assertNotEqual(self.diff(), "")
        for vm in vms:
            vm.signal(signal.SIGKILL)
        self.assert_host_as_before(KILLED, *NOTHING_RUNS)
        for vm in vms:
            self.assertEqual(vm.wait(), -signal.SIGKILL)
        if not harness.ROOTLESS:
            self.assertIn("forwarding = 1", self.diff())  # the uplink's, until the sweep
        self.sweep()
        self.assert_host_as_before(0)

    def test_kill_at_any_moment_of_the_start(self):
        """From exec to running CPUs is some 60 ms here."""
        for milliseconds in range(0, 120, 5):
            with self.subTest(milliseconds=milliseconds):
                vm = self.start("-q", "--net", ("nat", harness.FLAT)[milliseconds % 2], self.hang)
                time.sleep(milliseconds / 1000)
                vm.signal(signal.SIGKILL)
                vm.wait()
        self.assert_host_as_before(KILLED, *NOTHING_RUNS)
        self.sweep()
        self.assert_host_as_before(0)

    def test_a_kill_does_not_disturb_others(self):
        """The uplink's forwarding stays on for as long as somebody needs it."""
        killed = self.start_hanging("--net", "nat", "--name", "killed")
        other = self.start_hanging("--net", harness.FLAT, "--name", "other")
        killed.signal(signal.SIGKILL)
        killed.wait()
        self.sweep()
        forwarding = [] if harness.ROOTLESS else [".forwarding"]
        self.assertEqual("uplink0/forwarding = 1" in self.diff(), bool(forwarding))
        self.assertEqual(sorted(os.listdir(self.host.run)), [*forwarding, "other"])
        self.interrupt(other)

    # --- signals --------------------------------------------------------------------------------

    def test_sigterm_and_sigint_power_down(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number.name):
                vm = self.start("-q", "--net", "nat", *self.boot_files())
                vm.wait_for_prompt()
                vm.signal(number)
                self.assertEqual(vm.wait(), 128 + number)
                self.assert_says(vm)  # the guest did as it was asked

    def test_second_sigint_ends_at_once(self):
        """Also a guest that heeds nothing."""
        vm = self.start_hanging("-D", "--net", "nat")
        vm.signal(signal.SIGINT)
        vm.err.expect("asking the guest to power down", 30)
        vm.signal(signal.SIGINT)
        start = time.monotonic()
        self.assertEqual(vm.wait(), 130)
        self.assertLess(time.monotonic() - start, 8, "the grace of 10 s was waited for")
        self.assert_host_as_before(0, "links", "nft ruleset", "processes", "run directory")

    def test_sigterm_does_not_wait_for_ever(self):
        vm = self.start_hanging("--net", "isolated")
        vm.signal(signal.SIGTERM)
        self.assertEqual(vm.wait(), 143)
        self.assert_says(vm, ".*did not power down.*")

    # --- the guest and its helpers --------------------------------------------------------------

    def test_panic(self):
        vm = self.start("-q", "--net", "isolated", *self.boot_files())
        vm.wait_for_prompt()
        vm.type("echo c >/proc/sysrq-trigger\n")
        self.assertEqual(vm.wait(), 123)
        self.assert_says(vm, ".*panicked.*")

    def test_panic_that_only_the_console_tells(self):
        options = self.boot_files()
        vm = self.start("-q", "--net", "none", "--kernel", options[1], "--append",
                        "console=ttyS0 root=/dev/vda9")
        self.assertEqual(vm.wait(120), 123)
        self.assertIn("VFS: Unable to mount root fs", vm.out.text)
        self.assert_says(vm, ".*panicked.*")

    def test_qemu_is_killed(self):
        for number in (signal.SIGKILL, signal.SIGTERM):
            with self.subTest(number.name):
                vm = self.start_hanging("--net", "nat")
                os.kill(vm.child("qemu"), number)
                self.assertEqual(vm.wait(), 123)
                self.assert_says(vm, "QEMU .*")

    def test_firmware_that_talks_while_qemu_starts(self):
        """QEMU gives no answer before somebody has listened."""
        program = self.host.files / "talkative.py"
        program.write_text(TALKATIVE_QEMU)
        before = self.instead_of("qemu-system-x86_64", f"exec python3 {program}")
        vm = self.start("-q", "--net", "none", "--qemu-user", harness.USER_NAME, self.hang,
                        before=before)
        self.assertEqual(vm.wait(), 0, vm.err.text)

    def test_dnsmasq_dies(self):
        """It is started again, and the guest does not notice."""
        vm = self.start("--net", harness.FLAT, self.hang)
        vm.out.expect(harness.STARTED, 60)
        time.sleep(1.5)  # so that it was up
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
            with self.subTest(number.name):
                dnsmasq = vm.child("dnsmasq")
                os.kill(dnsmasq, number)
                self.wait_until(lambda: vm.child("dnsmasq") != dnsmasq)
        vm.err.expect("qvm: dnsmasq died: [^\n]*; it is started again\n", 10)
        self.interrupt(vm)

    def test_dnsmasq_never_comes_up(self):
        before = self.instead_of("dnsmasq", "echo no such luck >&2; exit 2")
        vm = self.start("-q", "--net", harness.FLAT, self.hang, before=before)
        self.assertEqual(vm.wait(), 125)
        self.assert_says(vm, "dnsmasq died: no such luck")

    def test_timeout(self):
        vm = self.start("-q", "--net", "nat", "--timeout", "5s", self.hang)
        self.assertEqual(vm.wait(), 124)
        self.assert_says(vm, "--timeout: .*5 s.*")
        self.assertRegex(vm.out.text, harness.STARTED)
        self.assert_host_as_before(0, "links", "nft ruleset", "processes", "run directory")

    def test_nothing_to_boot(self):
        image = self.host.files / "nothing.raw"
        image.write_bytes(b"\xcd\x18".ljust(510, b"\0") + b"\x55\xaa" + bytes(1024 * 1024 - 512))
        self.addCleanup(image.unlink)
        vm = self.start("-q", "--net", "isolated", "--timeout", "60s", image)
        self.assertEqual(vm.wait(60), 125)
        self.assert_says(vm, f"boot '{image}': .*boot loader.*")

    def test_qemu_that_does_not_start(self):
        vm = self.start("-q", "--net", "nat", "--qemu-arg=-no-such-option", self.hang)
        self.assertEqual(vm.wait(), 125)
        self.assert_says(vm, "start QEMU: .*-no-such-option.*")



if __name__ == "__main__":
    harness.main()
