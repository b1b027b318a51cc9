"""A guest with no uplink, and all that one boot can show besides the network."""

import json
import os
import pathlib
import re
import stat

import harness
import picture
import played_host

PHASES = ["namespace", "network", "overlay", "qemu-spawn", "qmp-ready", "running", "guest-ready",
          "teardown", "total"]
# What QEMU makes for itself.
OWN = r"anon_inode:\[(eventfd|eventpoll|signalfd|io_uring)\]|/dev/u?random|/dev/kvm"


class Isolated(harness.Test):
    def test_piped_commands_end_by_themselves(self):
        image = self.copy_of_demo("qcow2", "copy.qcow2")
        before = self.sha256(image)
        vm = self.start("--net", "isolated", image)
        vm.process.stdin.write(b"ip addr\npoweroff\n")
        vm.process.stdin.close()
        vm.process.stdin = None
        self.assertEqual(vm.wait(120), 0, vm.err.text)
        self.assert_host_as_before(0, "links", "nft ruleset", "processes", "run directory",
                                   "disk space", "abstract sockets")
        self.assertIn("inet 192.168.26.10/24", vm.out.text)
        self.assertEqual([line for line in vm.errors() if "no KVM" not in line], [])
        self.assertEqual(self.sha256(image), before, "the image was written to")

    def test_one_guest(self):
        timings = self.host.files / "timings.json"
        vm = self.start("--net", "isolated", "--name", "Web", "-m", "300M", "--cpus", "2",
                        f"--timings={timings}", "-D", self.demo)
        self.addCleanup(timings.unlink)
        dhcp = vm.out.expect(r"demo: eth0 [^\r\n]*(?=[\r\n])", 120).group()
        vm.wait_for_prompt()
        for check in (self._address, self._names, self._outside, self._size,
                      self._large_output, self._name_in_use, self._descriptors, self._run_directory):
            with self.subTest(check.__name__):
                check(vm)
        with self.subTest("DHCP"):
            self.assertEqual(dhcp, "demo: eth0 192.168.26.10/24 gateway 192.168.26.1 "
                                   "dns 192.168.26.1 mtu 1500 (DHCP)")
        self.power_off(vm)
        with self.subTest("timings"):
            self._timings(json.loads(timings.read_text()))
        with self.subTest("--debug"):
            self.assertRegex(vm.err.text, r"qvm: .* ms: network is up\n")
            self.assertRegex(vm.err.text, r"qvm: .* ms: qemu-system-x86_64 ")

    def _address(self, vm):
        self.assertIn("inet 192.168.26.10/24", vm.sh("ip -4 addr show eth0")[0])
        self.assertRegex(vm.sh("ip route")[0], r"default via 192\.168\.26\.1 ")
        self.assertIn("0% packet loss", vm.sh("ping -c 2 -W 5 192.168.26.1")[0])
        self.assertEqual(vm.sh("hostname")[0].strip(), "web")

    def _names(self, vm):
        self.assertIn("192.168.26.10", vm.sh("nslookup web 192.168.26.1")[0])
        self.assertRegex(vm.sh("nslookup gateway")[0], r"gateway\S*\s+Address[^:]*: 192\.168\.26\.1\b")
        self.assertEqual(vm.sh("ping -c 1 -W 5 gateway")[1], 0)
        # Nobody to ask is an answer, not a silence.
        self.assertNotIn("timed out", vm.sh(f"nslookup {played_host.SERVICE_NAME}")[0])

    def _outside(self, vm):
        """Unreachable is said at once: by an error, not by a time-out."""
        for address in (played_host.SERVICE, played_host.ADDRESS):
            said, status = vm.sh(f"nc -w 20 {address} 80 </dev/null 2>&1")
            self.assertNotEqual(status, 0)
            self.assertRegex(said, "unreachable|No route to host")

    def _size(self, vm):
        self.assertEqual(vm.sh("nproc")[0].strip(), "2")
        total = int(re.search(r"Mem: +(\d+)", vm.sh("free -m")[0]).group(1))
        self.assertLess(total, 300)
        self.assertGreater(total, 200)

    def _large_output(self, vm):
        said, _ = vm.sh("seq 1 20000", 120)
        wrong = [pair for pair in zip(said.split() + ["-"], range(1, 20001)) if pair[0] != str(pair[1])]
        self.assertEqual(wrong[:3], [])

    def _name_in_use(self, vm):
        self.assert_refused(self.qvm("run", "-q", "--net", "none", "--name", "web", self.hang),
                            rf"VM 'web': is running already \(pid {vm.pid}\)$")

    def _descriptors(self, vm):
        """QEMU and dnsmasq hold what the plan gives them."""
        qemu = picture.open_files(vm.child("qemu"))
        image, overlay = re.escape(os.path.realpath(self.demo)), r".* \(deleted\)"
        command = pathlib.Path(f"/proc/{vm.child('qemu')}/cmdline").read_text()
        plan = {0: "/dev/null", 1: "/dev/null", 2: "pipe:"}
        for word in command.split("\0"):
            for kind, fd in re.findall(r"\b(fd|vhostfd)=(\d+)", word):
                if word.startswith("socket,"):
                    plan[int(fd)] = "socket:"
                elif word.startswith("tap,"):
                    plan[int(fd)] = "/dev/net/tun" if kind == "fd" else "/dev/vhost-net"
        self.assertIn("/dev/net/tun", plan.values())
        for fd, what in plan.items():
            self.assertRegex(qemu.pop(fd, "closed"), f"^{what}")
        # Of the two in fdsets QEMU makes its own copies, under other numbers.
        rest = {fd: what for fd, what in qemu.items()
                if not re.fullmatch(f"{OWN}|{image}|{overlay}", what)}
        self.assertEqual(rest, {})
        dnsmasq = picture.open_files(vm.child("dnsmasq"))
        strange = {fd: what for fd, what in dnsmasq.items()
                   if not re.match(r"/dev/null|pipe:|socket:|anon_inode:inotify", what)}
        self.assertEqual(strange, {})
        self.assertFalse(set(self._sockets(vm.pid)) & set(self._sockets(vm.child("dnsmasq"))) -
                         set(self._standard(vm.pid)), "dnsmasq shares a socket with qvm")

    @staticmethod
    def _sockets(pid):
        return [what for what in picture.open_files(pid).values() if what.startswith("socket:")]

    @staticmethod
    def _standard(pid):
        return [what for fd, what in picture.open_files(pid).items() if fd <= 2]

    def _run_directory(self, vm):
        directory = self.host.run / "web"
        for path in (self.host.run, directory):
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o700)
        self.assertIn("demo: eth0", (directory / "console.log").read_text())
        for path in directory.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode) & 0o077, 0, path)
        self.assertEqual(list(self.host.cache.iterdir()), [], "the overlay has a name")

    def _timings(self, told):
        self.assertEqual(list(told), ["phases"])
        phases = {phase["name"]: phase for phase in told["phases"]}
        self.assertEqual(set(phases), set(PHASES))
        self.assertEqual(len(told["phases"]), len(PHASES))
        for phase in phases.values():
            self.assertEqual(set(phase), {"name", "start_ms", "ms"})
            self.assertGreaterEqual(phase["start_ms"], 0)
            self.assertGreaterEqual(phase["ms"], 0)
            self.assertLessEqual(phase["start_ms"] + phase["ms"], phases["total"]["ms"] + 1)
        self.assertEqual(phases["total"]["start_ms"], 0)


if __name__ == "__main__":
    harness.main()
