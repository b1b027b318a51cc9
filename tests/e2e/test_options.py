"""Options that need no guest to be up: --dry-run, --timings, --quiet, --debug, help."""

import shutil
import subprocess

import harness
import played_host

NO_KVM = "qvm: no KVM here"


class DryRun(harness.Test):
    """It says what would be done, and does none of it: the comparison is the test."""

    def plan(self, *words):
        done = self.qvm("run", "-q", "--dry-run", *words, self.hang)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assert_host_as_before(0)
        return done.stdout

    def test_isolated(self):
        plan = self.plan("--net", "isolated", "--name", "web")
        self.assertRegex(plan, r"(?m)^network:\n +1\. create a network namespace\n")
        self.assertRegex(plan, r"TAP tap0 \(.*\) with 192\.168\.26\.1/24 and fd71:766d:26::1/64, "
                               r"mtu 1500\n")
        self.assertIn('chain ingress {', plan)
        self.assertRegex(plan, r"run dnsmasq .*\n +dhcp-hosts: \S*,192\.168\.26\.10,\[fd71:766d:26::a\],"
                               r"web\.qvm\n")
        self.assertNotIn("host:", plan)
        self.assertRegex(plan, r"(?m)^qemu:\nqemu-system-x86_64 ")
        self.assertRegex(plan, r"-netdev tap,id=net0,fd=\d+ ")

    @harness.needs_root("the uplink is a veth for root only")
    def test_nat(self):
        plan = self.plan("--net", "nat,subnet=10.9.8.0/24")
        self.assertRegex(plan, r"host: address 10\.213\.0\.0/31 on qvm-\w+\n")
        self.assertRegex(plan, r"inside: address 10\.213\.0\.1/31 on ")
        self.assertRegex(plan, rf"host: IPv4 forwarding on qvm-\w+, {played_host.UPLINK}\n")
        self.assertIn("masquerade", plan)
        self.assertIn("10.9.8.1/24", plan)
        self.assertIn(",10.9.8.10,", plan)

    def test_nat_by_pasta(self):
        plan = self.plan("--net", "nat,subnet=10.9.8.0/24", "--uplink", "pasta")
        self.assertRegex(plan, r"host: run pasta .*--netns=/proc/self/fd/3 .*--no-map-gw")
        self.assertNotRegex(plan, r"veth|host: (address|IPv4|table)")
        self.assertIn("masquerade", plan)
        self.assertIn(",10.9.8.10,", plan)

    @harness.needs_root("the uplink is a veth for root only")
    def test_pool_avoids_what_the_host_routes(self):
        played_host.ip("route", "add", "10.213.0.0/30", "via", played_host.ROUTER)
        self.addCleanup(played_host.ip, "route", "del", "10.213.0.0/30")
        self.before = harness.picture.Picture(self.host)
        self.assertIn("host: address 10.213.0.4/31", self.plan("--net", "nat"))
        self.before.sections["routes"] = [line for line in self.before.sections["routes"]
                                          if "10.213.0.0/30" not in line]

    def test_flat(self):
        plan = self.plan("--net", "flat")
        self.assertRegex(plan, r"bridge br0 with 192\.168\.26\.2/24, mtu 1500, ports: tap0, \w+\n")
        self.assertRegex(plan, r"host: address 192\.168\.26\.1/24 on qvm-\w+\n")
        self.assertIn(played_host.UPLINK, plan)

    def test_user_and_none(self):
        self.assertIn("-netdev user", self.plan("--net", "user"))
        self.assertNotIn("-netdev", self.plan("--net", "none"))

    def test_options_reach_qemu(self):
        plan = self.plan("--net", "none", "-m", "2G", "--cpus", "3", "--accel", "tcg",
                         "--qemu-arg", "-device", "--qemu-arg", "pci-testdev")
        for words in ("-m 2048M", "-smp 3", "-accel tcg", "-device pci-testdev"):
            self.assertIn(words, plan)

    @harness.needs_root("it is taken away here")
    def test_without_privilege(self):
        qvm = self.host.base / "qvm"  # where nobody may run it
        shutil.copy(harness.QVM, qvm)
        qvm.chmod(0o755)
        self.addCleanup(qvm.unlink)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env",
             f"QVM_RUN_DIR={self.host.base}/none", qvm, "run", "-q", "--dry-run", "--net", "user",
             self.hang],
            cwd="/", timeout=30, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("-netdev user", done.stdout)


class Output(harness.Test):
    def end(self, vm):
        vm.out.expect(harness.STARTED, 60)
        self.interrupt(vm)

    def test_timings_on_stderr(self):
        vm = self.start("-q", "--net", "isolated", "--timings", self.hang)
        self.end(vm)
        names = [line.split()[0] for line in vm.errors()]
        self.assertEqual(names[-1], "total")
        self.assertEqual(set(names), {"namespace", "network", "overlay", "qemu-spawn", "qmp-ready",
                                      "running", "teardown", "total"})
        for line in vm.errors():
            self.assertRegex(line, r"^[a-z-]+ +\d+\.\d+$")

    def test_timings_into_a_file_that_cannot_be_made(self):
        done = self.qvm("run", "-q", "--net", "none", "--timings=/missing/t.json", "--timeout",
                        "2s", self.hang)
        self.assert_refused(done, "--timings.*'/missing/t.json'")

    def test_quiet(self):
        vm = self.start("-q", "--net", "none", self.hang)
        self.end(vm)
        self.assertEqual(vm.err.text, "")

    def test_without_kvm_it_is_said_once(self):
        vm = self.start("--net", "none", self.hang)
        self.end(vm)
        plan = self.qvm("run", "--dry-run", "--net", "none", self.hang).stdout
        notes = [line for line in vm.errors() if line.startswith(NO_KVM)]
        self.assertEqual(len(notes), 0 if "-accel kvm" in plan else 1)

    def test_debug(self):
        vm = self.start("-D", "--accel", "tcg", "--net", "isolated", self.hang)
        self.end(vm)
        self.assertRegex(vm.err.text, r"(?m)^qvm: +\d+\.\d+ ms: VM is started$")

    def test_help_and_version(self):
        for words in (["--help"], ["run", "--help"], ["version"], ["--version"]):
            with self.subTest(words):
                done = self.qvm(*words)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertTrue(done.stdout)


if __name__ == "__main__":
    harness.main()
