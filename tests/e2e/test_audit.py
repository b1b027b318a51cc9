"""--audit: a run that leaves the host as it was says nothing, and one that does not is found out."""

import os
import pathlib
import re
import signal
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
        for net in (*harness.NETS, "user", "none"):
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

    def test_what_was_there_before(self):
        """A child that a script had before it became qvm ends, and a log of its is renamed."""
        log = self.host.files / "log"
        self.addCleanup(lambda: log.with_suffix(".1").unlink())
        guest = self.start_audited("--net", "none", before=[
            "sh", "-c", 'exec 7>"$0"; sleep 1 & exec "$@"', log])
        log.rename(log.with_suffix(".1"))
        time.sleep(1)
        self.assert_clean(*self.ended(guest), 128 + signal.SIGQUIT)

    def test_side_by_side(self):
        """None takes another's coming and going for its own, nor forwarding that another has on."""
        guests = [self.start(*self.options("--net", net, life=0.3 + 0.2 * number))
                  for number, net in enumerate(2 * ("nat", harness.FLAT, "isolated"))]
        for guest in guests:
            self.assert_clean(guest.wait(), guest.err.text)

    def test_others_that_are_killed(self):
        name = self.detach("--net", harness.FLAT, "-m", "64M", self.hang)
        guest = self.start_audited("--net", "nat")
        os.kill(self.supervisor_of(name), signal.SIGKILL)
        status, stderr = self.ended(guest)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)

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
        name = self.detach("--net", harness.FLAT, "--group", "lab", "-m", "64M", self.hang)
        last = self.start_audited("--group", "lab")
        self.succeed("kill", name)
        status, stderr = self.ended(last)
        self.assert_clean(status, stderr, 128 + signal.SIGQUIT)

    def test_a_group_that_ends_at_once(self):
        guests = [self.start_audited("--net", "nat", "--group", "lab") for _ in range(2)]
        for guest in guests:
            guest.signal(signal.SIGQUIT)
        time.sleep(0.3)
        for guest in guests:
            guest.signal(signal.SIGQUIT)
        for guest in guests:
            self.assert_clean(guest.wait(), guest.err.text, 128 + signal.SIGQUIT)


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

    def test_what_is_planted(self):
        """One of each kind, while one guest runs; the last of them is gone, not new."""
        sysctl = f"net/ipv4/conf/{played_host.UPLINK}/accept_local"
        path = pathlib.Path("/proc/sys", sysctl)
        place = self.host.files / "place"
        cached = self.host.cache / "ghost"
        route = ("default", "via", played_host.ROUTER)
        guest = self.start_audited("--net", "nat")

        def plant(change, *back):
            self.addCleanup(*back)
            change()
        plant(lambda: ip("link", "add", "ghost0", "mtu", "1400", "type", "bridge"),
              ip, "link", "del", "ghost0")
        ip("address", "add", "192.0.2.1/24", "dev", "ghost0")
        plant(lambda: ip("link", "add", "qvm-ghost", "type", "bridge"), ip, "link", "del", "qvm-ghost")
        plant(lambda: ip("route", "add", "192.0.2.0/24", "via", played_host.ROUTER, "table", "77"),
              ip, "route", "flush", "table", "77")
        plant(lambda: ip("rule", "add", "fwmark", "7", "table", "77", "priority", "99"),
              ip, "rule", "del", "priority", "99")
        plant(lambda: self.tool("nft", "table inet ghost { chain c { accept; }; }"),
              self.tool, "nft", "delete table inet ghost")
        plant(lambda: path.write_text("1"), path.write_text, "0")
        plant(place.mkdir, place.rmdir)
        plant(lambda: self.tool("mount", "-t", "tmpfs", "ghost", place), self.tool, "umount", place)
        plant(cached.touch, cached.unlink)
        plant(lambda: ip("route", "del", *route), ip, "route", "add", *route)

        lines, _ = self.differences(*self.ended(guest))
        of_links = rf"\+ sysctl net/ipv[46]/(?:conf|neigh)/(?:ghost0|qvm-ghost)/\S+ = .*"
        self.assertIn("+ sysctl net/ipv4/conf/ghost0/forwarding = 0", lines)
        uplink = f"via {played_host.ROUTER} dev {played_host.UPLINK}"
        expected = [r"\+ link ghost0 index \d+ bridge mtu 1400",
                    r"\+ link qvm-ghost index \d+ bridge mtu 1500",
                    r"\+ address 192\.0\.2\.1/24 dev ghost0",
                    rf"- route ip default unicast table main metric 0 {uplink}",
                    rf"\+ route ip 192\.0\.2\.0/24 unicast table \w+ metric 0 {uplink}",
                    r"\+ route ip 192\.0\.2\.1 local table local .* dev ghost0",
                    r"\+ rule ip 99 .*mark 0x7/.* 0x4d .*",
                    r"\+ nftables chain inet ghost c handle \d+",
                    r"\+ nftables rule inet ghost c handle \d+",
                    r"\+ nftables table inet ghost handle \d+ flags 0",
                    rf"- sysctl {sysctl} = 0",
                    rf"\+ sysctl {sysctl} = 1",
                    rf"\+ mount .* {place} .* - tmpfs ghost .*",
                    r"\+ cache directory ghost"]
        if harness.ROOTLESS:  # who may not read the host's rules
            expected = [pattern for pattern in expected if "nftables" not in pattern]
        rest = [line for line in lines if not re.fullmatch(of_links, line)]
        self.assertEqual(len(rest), len(expected), "\n".join(rest))
        for line, pattern in zip(rest, expected):
            self.assertRegex(line, f"^{pattern}$")

    def test_what_qvm_should_have_removed(self):
        """It leaves a directory that has a file of somebody else's, and forwarding that no living
        process has a lease of."""
        name = f"net/ipv4/conf/{played_host.UPLINK}/forwarding"
        setting = pathlib.Path("/proc/sys", name)
        guest = self.start_audited("--net", "isolated", "--group", "lab", "--name", "web")
        foreign = [self.host.run / "web" / "foreign", self.host.run / ".groups" / "lab" / "foreign"]
        for path in foreign:
            path.touch()
        setting.write_text("1")
        status, stderr = self.ended(guest)
        setting.write_text("0")
        for path in foreign:
            path.unlink()
        self.sweep()
        lines, _ = self.differences(status, stderr)
        self.assertEqual(lines, [f"- sysctl {name} = 0", f"+ sysctl {name} = 1",
                                 "+ run directory group lab", "+ run directory web"])

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
        # Without a seed, in which each run is another machine.
        words = ["run", "-q", "--dry-run", "--name", "web", "--net", "none", *self.boot_files()]
        plan = self.qvm(*words)
        same = self.qvm(*words, "--audit")
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
