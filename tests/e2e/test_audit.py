"""--audit: a run that leaves the host as it was says nothing, and one that does not is found out."""

import os
import pathlib
import signal
import subprocess
import time

import harness
import picture
import played_host
from played_host import ip

SAYS = "qvm: --audit: the host is not as it was:"
LIFE = 0.5  # seconds
TIMED_OUT = "qvm: --timeout: "


class Audit(harness.Test):
    def options(self, *options, life=LIFE):
        return ["-q", "--audit", "-m", "64M", "--timeout", life, *options, self.hang]

    def run_audited(self, *options, before=()):
        return self.qvm("run", *self.options(*options), before=before)

    def start_audited(self, *options, life=60, before=()):
        """Up to the guest's first words."""
        guest = self.start(*self.options(*options, life=life), before=before)
        guest.out.expect(harness.STARTED, 60)
        return guest

    def assert_clean(self, status, stderr, expected=124):
        self.assertNotIn(SAYS, stderr)
        self.assertEqual(status, expected, stderr)

    def ended(self, guest):
        """Its exit status and what it said on stderr, ended as a user does."""
        guest.signal(signal.SIGQUIT)
        time.sleep(0.3)  # more than an echo
        guest.signal(signal.SIGQUIT)
        return guest.wait(), guest.err.text

    def differences(self, status, stderr):
        """What it found, and what was said before."""
        self.assertEqual(status, 125, stderr)
        said, found, lines = stderr.partition(SAYS + "\n")
        self.assertTrue(found, stderr)
        for line in lines.splitlines():
            self.assertRegex(line, r"^[-+] [a-z]")
        return lines.splitlines(), said


class Clean(Audit):
    """The host is as it was, and the exit status is the guest's."""

    def test_every_mode(self):
        for net in ("isolated", "nat", "flat", "user", "none"):
            with self.subTest(net):
                done = self.run_audited("--net", net)
                self.assert_clean(done.returncode, done.stderr)
                self.assertRegex(done.stderr, f"^{TIMED_OUT}.*\n$")

    def test_a_guest_that_powers_off(self):
        guest = self.start("-q", "--audit", "--net", "nat", "-p", "0:80", *self.boot_files())
        guest.wait_for_prompt()
        self.power_off(guest)
        self.assertEqual(guest.err.text, "")

    def test_a_signal(self):
        guest = self.start_audited("--net", "nat")
        status, stderr = self.ended(guest)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)

    def test_what_fails_before_the_guest_runs(self):
        done = self.run_audited("--net", "nat,subnet=203.0.113.0/24,address=1.2.3.4")
        self.assert_refused(done, "address")
        done = self.run_audited("--net", "isolated", "--qemu-arg=-no-such-option")
        self.assert_refused(done, "no-such-option")
        done = self.qvm("run", "--audit", "no-such-image")
        self.assert_refused(done, "no-such-image")

    def test_with_timings(self):
        file = self.host.cwd / "timings.json"
        done = self.run_audited("--net", "nat", f"--timings={file}")
        file.unlink()
        self.assert_clean(done.returncode, done.stderr)

    def test_side_by_side(self):
        """None takes another's coming and going for its own, nor forwarding that another has on."""
        guests = [self.start(*self.options("--net", net, life=0.3 + 0.2 * number))
                  for number, net in enumerate(("nat", "flat", "nat", "isolated", "flat", "nat"))]
        for guest in guests:
            self.assert_clean(guest.wait(), guest.err.text)

    def test_others_that_are_killed(self):
        name = self.detach("--net", "flat", "-m", "64M", self.hang)
        guest = self.start_audited("--net", "nat")
        os.kill(self.supervisor_of(name), signal.SIGKILL)
        status, stderr = self.ended(guest)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)

    def test_a_group_of_its_own(self):
        done = self.run_audited("--net", "nat", "--group", "lab")
        self.assert_clean(done.returncode, done.stderr)

    def test_a_group_that_others_go_on_in(self):
        """Its first member, and one that joined."""
        first = self.start_audited("--net", "nat", "--group", "lab")
        name = self.detach("--group", "lab", "-m", "64M", self.hang)
        status, stderr = self.ended(first)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)
        done = self.run_audited("--group", "lab")
        self.assert_clean(done.returncode, done.stderr)
        self.succeed("kill", name)

    def test_the_last_of_a_group(self):
        name = self.detach("--net", "flat", "--group", "lab", "-m", "64M", self.hang)
        last = self.start_audited("--group", "lab")
        self.succeed("kill", name)
        status, stderr = self.ended(last)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)

    def test_a_group_that_ends_at_once(self):
        self.detach("--net", "nat", "--group", "lab", "-m", "64M", "--timeout", "3", self.hang)
        guests = [self.start_audited("--group", "lab") for _ in range(2)]
        for guest in guests:
            guest.signal(signal.SIGQUIT)
        time.sleep(0.3)
        for guest in guests:
            guest.signal(signal.SIGQUIT)
        for guest in guests:
            self.assert_clean(guest.wait(), guest.err.text, 128 + signal.SIGQUIT)
        self.wait_until(lambda: not self.ps())


class Found(Audit):
    """Leaks that are planted."""

    def test_a_process_that_outlives(self):
        before = self.instead_of("dnsmasq", "setsid sleep 50 & exec sleep 60")
        done = self.run_audited("--net", "nat", before=before)
        lines, said = self.differences(done.returncode, done.stderr)
        leaked = [pid for pid, name in picture.processes().items() if name == "sleep"]
        for pid in leaked:
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(lines, [f"+ child process {pid} sleep" for pid in leaked])
        self.assertTrue(said.startswith(TIMED_OUT), said)

    def found(self, change, back):
        """A guest runs, the host is changed, the guest ends: the differences."""
        guest = self.start_audited("--net", "nat")
        change()
        try:
            status, stderr = self.ended(guest)
        finally:
            back()
        return self.differences(status, stderr)[0]

    def test_a_link_with_an_address(self):
        def change():
            ip("link", "add", "ghost0", "mtu", "1400", "type", "bridge")
            ip("address", "add", "192.0.2.1/24", "dev", "ghost0")
        lines = self.found(change, lambda: ip("link", "del", "ghost0"))
        self.assertRegex(lines[0], r"^\+ link ghost0 index \d+ bridge mtu 1400$")
        self.assertIn("+ address 192.0.2.1/24 dev ghost0", lines)
        self.assertIn("+ sysctl net/ipv4/conf/ghost0/forwarding = 0", lines)
        self.assertFalse([line for line in lines if "ghost0" not in line])

    def test_a_link_that_has_no_network_of_ours(self):
        """What only looks like one of qvm's."""
        lines = self.found(lambda: ip("link", "add", "qvm-ghost", "type", "bridge"),
                           lambda: ip("link", "del", "qvm-ghost"))
        self.assertRegex(lines[0], r"^\+ link qvm-ghost ")

    def test_a_route_and_a_rule(self):
        def change():
            ip("route", "add", "192.0.2.0/24", "via", played_host.ROUTER, "table", "77")
            ip("rule", "add", "fwmark", "7", "table", "77", "priority", "99")

        def back():
            ip("rule", "del", "priority", "99")
            ip("route", "flush", "table", "77")
        lines = self.found(change, back)
        self.assertRegex(lines[0], r"^\+ route ip 192\.0\.2\.0/24 unicast table \w+ metric 0 via "
                                   rf"{played_host.ROUTER} dev {played_host.UPLINK}$")
        self.assertRegex(lines[1], r"^\+ rule ip 99 .*mark 0x7/.* 0x4d ")
        self.assertEqual(len(lines), 2)

    def test_a_route_that_is_gone(self):
        route = ("default", "via", played_host.ROUTER)
        lines = self.found(lambda: ip("route", "del", *route), lambda: ip("route", "add", *route))
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], "^- route ip default .* via " + played_host.ROUTER)

    def test_an_nftables_table(self):
        def nft(*words):
            subprocess.run(["nft", *words], check=True, timeout=20)
        lines = self.found(lambda: nft("table inet ghost { chain c { accept; }; }"),
                           lambda: nft("delete table inet ghost"))
        self.assertRegex("\n".join(lines),
                         r"^\+ nftables chain inet ghost c handle \d+\n"
                         r"\+ nftables rule inet ghost c handle \d+\n"
                         r"\+ nftables table inet ghost handle \d+ flags 0$")

    def test_a_sysctl(self):
        name = f"net/ipv4/conf/{played_host.UPLINK}/accept_local"
        path = pathlib.Path("/proc/sys", name)
        lines = self.found(lambda: path.write_text("1"), lambda: path.write_text("0"))
        self.assertEqual(lines, [f"- sysctl {name} = 0", f"+ sysctl {name} = 1"])

    def test_a_mount(self):
        place = self.host.files / "place"
        place.mkdir()
        self.addCleanup(place.rmdir)
        lines = self.found(lambda: self.tool("mount", "-t", "tmpfs", "ghost", place),
                           lambda: self.tool("umount", place))
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], rf"^\+ mount .* {place} .* - tmpfs ghost ")

    def test_a_file_in_the_cache_directory(self):
        path = self.host.cache / "ghost"
        self.assertEqual(self.found(path.touch, path.unlink), ["+ cache directory ghost"])

    def test_the_vms_directory(self):
        """One that qvm does not remove, since it has a file of somebody else's."""
        guest = self.start_audited("--net", "none", "--name", "web")
        path = self.host.run / "web" / "foreign"
        path.touch()
        status, stderr = self.ended(guest)
        lines, _ = self.differences(status, stderr)
        path.unlink()
        self.sweep()
        self.assertEqual(lines, ["+ run directory web"])

    def test_the_groups_directory(self):
        guest = self.start_audited("--net", "isolated", "--group", "lab")
        path = self.host.run / ".groups" / "lab" / "foreign"
        path.touch()
        status, stderr = self.ended(guest)
        lines, _ = self.differences(status, stderr)
        path.unlink()
        self.sweep()
        self.assertEqual(lines, ["+ run directory group lab"])

    def test_forwarding_that_no_vm_holds_on(self):
        """With a lease of a dead one it would be put back."""
        name = f"net/ipv4/conf/{played_host.UPLINK}/forwarding"
        path = pathlib.Path("/proc/sys", name)
        guest = self.start_audited("--net", "isolated")
        path.write_text("1")
        status, stderr = self.ended(guest)
        path.write_text("0")
        lines, _ = self.differences(status, stderr)
        self.assertEqual(lines, [f"- sysctl {name} = 0", f"+ sysctl {name} = 1"])

    def test_what_is_gone_within_two_seconds(self):
        """Is no difference: the kernel takes things back behind the scenes."""
        guest = self.start_audited("--net", "nat")
        ip("link", "add", "ghost0", "type", "bridge")
        guest.signal(signal.SIGQUIT)
        time.sleep(0.3)
        guest.signal(signal.SIGQUIT)
        time.sleep(1)
        self.assertIsNone(guest.process.poll())  # it waits for that
        ip("link", "del", "ghost0")
        self.assert_clean(guest.wait(), guest.err.text, 128 + signal.SIGQUIT)


class Options(Audit):
    def test_not_in_the_background(self):
        done = self.qvm("run", "--audit", "-d", self.hang)
        self.assert_refused(done, "--audit: goes with a run in the foreground only")

    def test_a_dry_run_is_one(self):
        plan = self.qvm("run", "-q", "--dry-run", "--name", "web", "--net", "none", self.hang)
        same = self.qvm("run", "-q", "--dry-run", "--audit", "--name", "web", "--net", "none",
                        self.hang)
        self.assertEqual((same.returncode, same.stdout, same.stderr),
                         (0, plan.stdout, plan.stderr))

    def test_on_a_terminal_there_is_no_way_to_detach(self):
        guest = self.start_on_terminal("-q", "--audit", "--net", "none", self.hang)
        guest.out.expect(harness.STARTED, 60)
        guest.type("\x1d")
        question = guest.out.expect(r"\[\w\]\w+.*\[c\]ontinue", 30).group(0)
        self.assertNotIn("etach", question)
        guest.type("k")
        self.assertEqual(guest.wait(), 128 + signal.SIGKILL)
        self.assertNotIn(SAYS, guest.out.text)


if __name__ == "__main__":
    harness.main()
