"""What happens to the host while a guest runs: its firewall, its uplink, its routes, its clock, its
disk, its memory. The guest keeps its network or gets it back, or the user is told why not."""

import json
import os
import pathlib
import re
import signal
import subprocess
import time

import harness
import played_host
from played_host import ADDRESS, ROUTER, SERVICE, UPLINK, ip, sysctl
from test_uplink import host_links

TICKS = "/tmp/ticks"
FIREWALL = """flush ruleset
table inet filter {
    chain input { type filter hook input priority filter; policy accept; ct state invalid drop; }
    chain forward { type filter hook forward priority filter; policy accept; }
}
"""
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Weather(harness.Test):
    # --- what the guest still has ---------------------------------------------------------------

    def assert_reaches_outside(self, vm, seen_as=ADDRESS):
        said = vm.sh(f"wget -q -O - http://{SERVICE}/")
        self.assertEqual(said, (f"you are {seen_as}\n", 0))

    def start_ticks(self, vm):
        """A connection of the guest's that says something all the time."""
        vm.sh(f"(sleep 1000 | nc {SERVICE} 37 > {TICKS} &); sleep 1")
        self.assert_ticks_go_on(vm)

    def ticks(self, vm):
        return int(vm.sh(f"wc -l < {TICKS}")[0])

    def assert_ticks_go_on(self, vm):
        before = self.ticks(vm)
        self.wait_until(lambda: self.ticks(vm) > before + 3)

    def problems(self, vm):
        return json.loads(self.succeed("inspect", vm.name))[0]["problems"]

    # --- what is done to the host ---------------------------------------------------------------

    def nft(self, text):
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, timeout=20)

    def forwarding(self, interface):
        return pathlib.Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").read_text().strip()

    # --- the network ----------------------------------------------------------------------------

    def test_guests_go_through_all_weathers(self):
        """A guest of each kind, and one thing after the other that happens to their host."""
        kinds = {"pasta": ("--net", "nat", "--uplink", "pasta")}
        if not harness.ROOTLESS:
            kinds |= {"nat": ("--net", "nat"), "flat": ("--net", "flat")}
        vms = {name: self.start(*options, "--name", name, self.demo)
               for name, options in kinds.items()}
        for name, vm in vms.items():
            vm.name = name
            vm.wait_for_prompt()
            self.start_ticks(vm)
        for weather in (self.firewall_reloads, self.forwarding_is_switched_off,
                        self.default_route_moves, self.uplink_goes_and_comes_back,
                        self.uplink_has_another_address):
            for name, vm in vms.items():
                with self.subTest(weather=weather.__name__, vm=name):
                    weather(vm)
        for name, weather in (("nat", self.vpn_claims_the_pool),
                              ("nat", self.uplink_has_a_smaller_mtu),
                              ("pasta", self.uplink_has_a_smaller_mtu),
                              ("nat", self.supervisor_is_suspended),
                              ("pasta", self.supervisor_is_suspended)):
            if name in vms:
                with self.subTest(weather=weather.__name__, vm=name):
                    weather(vms[name])
        for vm in vms.values():
            self.power_off(vm)
        self.assertEqual(self.forwarding(UPLINK), "0")

    def firewall_reloads(self, vm):
        self.nft("flush ruleset")
        self.nft(FIREWALL)
        subprocess.run(["iptables-restore"], input="*filter\n:FORWARD ACCEPT [0:0]\n-F\nCOMMIT\n",
                       text=True, check=True, timeout=20)
        self.nft("flush ruleset")
        self.assert_ticks_go_on(vm)
        self.assert_reaches_outside(vm)

    def forwarding_is_switched_off(self, vm):
        """As `sysctl --system` does on a host whose files say so."""
        sysctl("net.ipv4.ip_forward", 1)
        sysctl("net.ipv4.ip_forward", 0)
        self.assert_ticks_go_on(vm)
        self.assert_reaches_outside(vm)

    def plug_in(self):
        """Another way to the outside, as a dongle is."""
        internet = self.host.internet.pid
        ip("link", "add", "uplink1", "type", "veth", "peer", "name", "wan1", "netns", str(internet))
        ip("address", "add", "198.18.0.1/30", "dev", "wan1", pid=internet)
        ip("link", "set", "wan1", "up", pid=internet)
        ip("address", "add", "198.18.0.2/30", "dev", "uplink1")
        ip("link", "set", "uplink1", "up")
        ip("route", "replace", "default", "via", "198.18.0.1")

    def pull_out(self):
        ip("link", "del", "uplink1")
        ip("route", "replace", "default", "via", ROUTER)

    def default_route_moves(self, vm):
        self.plug_in()
        if not harness.ROOTLESS:
            self.wait_until(lambda: self.forwarding("uplink1") == "1")
        self.assert_reaches_outside(vm, "198.18.0.2")
        self.pull_out()
        self.assert_reaches_outside(vm)

    def uplink_goes_and_comes_back(self, vm):
        vm.err.skip()
        events = self.started("events", "--json")
        self.wait_until(lambda: list(self.host.run.glob(".events/*.sock")))
        ip("link", "set", UPLINK, "down")
        vm.err.expect("qvm: the host has no route to the outside: neither has the guest\n", 10)
        self.assertNotEqual(vm.sh(f"ping -c 1 -W 2 {SERVICE}")[1], 0)
        self.assertIn("no route to the outside", self.problems(vm)["network"])
        self.uplink_up()
        vm.err.expect("qvm: the guest reaches the outside again\n", 10)
        self.assert_reaches_outside(vm)
        self.assertEqual(self.problems(vm), {})
        for what in ("problem", "recovered"):
            events.out.expect(rf'"event":"{what}","name":"{vm.name}"[^\n]*"about":"network"', 10)
        events.signal(signal.SIGTERM)

    def uplink_up(self):
        ip("link", "set", UPLINK, "up")
        ip("route", "replace", "default", "via", ROUTER)
        self.host._settle()

    def uplink_has_another_address(self, vm):
        self.change_address(ADDRESS, "203.0.113.9")
        self.assert_reaches_outside(vm, "203.0.113.9")
        self.change_address("203.0.113.9", ADDRESS)
        self.assert_reaches_outside(vm)

    def change_address(self, old, new):
        ip("address", "del", f"{old}/24", "dev", UPLINK)
        ip("address", "add", f"{new}/24", "dev", UPLINK)
        ip("route", "replace", "default", "via", ROUTER)

    def vpn_claims_the_pool(self, vm):
        vm.err.skip()
        # A point-to-point link that leads nowhere. Its route of the whole pool is less specific
        # than the VM's own; the next VM takes addresses elsewhere.
        ip("tuntap", "add", "vpn0", "mode", "tun")
        ip("link", "set", "vpn0", "up")
        ip("route", "add", "10.0.0.0/8", "dev", "vpn0")
        self.assert_reaches_outside(vm)
        plan = self.qvm("run", "-q", "--dry-run", "--net", "nat", self.hang)
        self.assertIn("172.29.0.", plan.stdout)
        self.assertEqual(self.problems(vm), {})
        # A policy rule takes what is for the VM before the host's own routes are asked.
        ip("route", "add", "10.213.0.0/16", "dev", "vpn0", "table", "99")
        ip("rule", "add", "to", "10.213.0.0/16", "lookup", "99", "priority", "100")
        vm.err.expect(r"qvm: the host's routes lead what is for 10\.213\.0\.1 to 'vpn0' and not to "
                      r"'qvm-\w+': the guest is cut off\n", 10)
        ip("rule", "del", "priority", "100")
        vm.err.expect("qvm: the guest reaches the outside again\n", 10)
        self.assert_reaches_outside(vm)
        ip("link", "del", "vpn0")

    def uplink_has_a_smaller_mtu(self, vm):
        vm.sh(f"(while :; do head -c 20000 /dev/zero; sleep 0.1; done | nc {SERVICE} 9 &)")
        self.wait_until(lambda: self.taken(vm) > 100_000)
        self.host.set_mtu(1280)
        for _ in range(2):
            before = self.taken(vm)
            self.wait_until(lambda: self.taken(vm) > before + 100_000)
        self.assert_reaches_outside(vm)
        self.host.set_mtu(1500)

    def taken(self, vm):
        return int(vm.sh(f"wget -q -O - http://{SERVICE}/taken")[0])

    def supervisor_is_suspended(self, vm):
        self.start_ticks(vm)
        before = self.ticks(vm)
        vm.type("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done\n")
        vm.out.expect("line 1\r", 20)
        vm.signal(signal.SIGSTOP)
        time.sleep(3)
        vm.signal(signal.SIGCONT)
        vm.out.expect(r"line 1999\r*\n", 60)
        lines = re.findall(r"line (\d+)\r*\n", vm.out.text)
        self.assertEqual(lines, [str(i) for i in range(2000)])
        self.assertGreater(self.ticks(vm), before + 20)  # the guest's traffic is the kernel's
        self.assert_reaches_outside(vm)

    @harness.needs_root("without it nothing of the host is set")
    def test_a_host_that_has_become_a_router_stays_one(self):
        vm = self.start("--net", "nat", self.hang)
        vm.out.expect(harness.STARTED, 60)
        self.assertEqual(self.forwarding(UPLINK), "1")
        self.addCleanup(sysctl, "net.ipv4.ip_forward", 0)
        sysctl("net.ipv4.ip_forward", 1)
        self.interrupt(vm)
        self.assertEqual(self.forwarding(UPLINK), "1")

    @harness.needs_root("without it there is no host end")
    def test_a_host_end_that_was_cleared_and_one_that_was_deleted(self):
        vm = self.start("--net", "nat", self.hang)
        vm.out.expect(harness.STARTED, 60)
        (link,) = host_links()
        before = self.addresses(link)
        ip("address", "flush", "dev", link)
        self.wait_until(lambda: self.addresses(link) == before)
        ip("link", "set", link, "down")
        self.wait_until(lambda: "state UP" in self.links(link))
        self.assertEqual(vm.errors(), [line for line in vm.errors() if "KVM" in line])
        ip("link", "del", link)
        vm.err.expect(f"qvm: the VM's link '{link}' is not there any more: the guest is cut off\n", 10)
        self.interrupt(vm)

    def addresses(self, link):
        return subprocess.run(["ip", "-o", "-4", "address", "show", "dev", link],
                              capture_output=True, text=True, check=True, timeout=20).stdout

    def links(self, link):
        return subprocess.run(["ip", "-o", "link", "show", "dev", link], capture_output=True,
                              text=True, check=True, timeout=20).stdout

    @harness.needs_root("without it nothing of the host is set")
    def test_who_joins_a_group_takes_the_way_out_that_there_is(self):
        self.plug_in()
        try:
            self.detach("-m", "64M", "--group", "lab", "--name", "first", self.hang)
        finally:
            self.pull_out()
        self.detach("-m", "64M", "--group", "lab", "--name", "second", self.hang)
        self.assertEqual(self.forwarding(UPLINK), "1")

    def test_a_host_without_a_way_out_says_so(self):
        ip("route", "del", "default")
        self.addCleanup(ip, "route", "replace", "default", "via", ROUTER)
        done = self.qvm("run", "--net", "nat", "--timeout", "1s", self.hang)
        why = "the host has no route to the outside: neither has the guest"
        self.assertEqual(done.returncode, 124)
        self.assertIn(f"qvm: {why}\n", done.stderr)
        self.assertRegex(done.stderr, rf"\nqvm: --timeout: .*; {why}\n$")

    # --- time, space ----------------------------------------------------------------------------

    def test_a_clock_that_jumps(self):
        """dnsmasq is who asks for the time of day; a guest keeps its address all the same."""
        if not os.path.exists(FAKETIME):
            self.skipTest("there is no libfaketime")
        clock = self.host.files / "clock"
        clock.write_text("+0\n")
        before = self.instead_of(
            "dnsmasq", f"LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1 "
                       'exec /usr/sbin/dnsmasq "$@"')
        vm = self.start("--net", "nat", self.demo, before=before)
        vm.wait_for_prompt()
        for jump in ("+3650d", "-3650d", "+0"):
            clock.write_text(f"{jump}\n")
            said, status = vm.sh("udhcpc -f -n -q -i eth0 -s /etc/udhcpc.sh 2>&1")
            self.assertEqual(status, 0, said)
            self.assertIn("inet 192.168.26.10/24", vm.sh("ip -4 addr show eth0")[0])
            said = vm.sh(f"wget -q -O - http://{played_host.SERVICE_NAME}/")
            self.assertEqual(said, (f"you are {ADDRESS}\n", 0))
        self.power_off(vm)

    def small_cache(self):
        """Words before a command whose guests' disks have 4 MiB to grow, and the directory."""
        path = self.host.files / "small"
        path.mkdir()
        self.addCleanup(path.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M,mode=700", "small", str(path)],
                       check=True, timeout=20)
        self.host.give(path)
        self.addCleanup(subprocess.run, ["umount", str(path)], check=True, timeout=20)
        return ["env", f"QVM_CACHE_DIR={path}"], path

    def test_a_disk_that_is_full(self):
        before, cache = self.small_cache()
        vm = self.start("--net", "isolated", "--name", "box", self.demo, before=before)
        vm.wait_for_prompt()
        vm.type("dd if=/dev/zero of=/dev/vda bs=1M seek=4 count=8; echo dd says $?\n")
        vm.err.expect(f"qvm: no space left for the guest's disk in '{cache}': the guest is paused; "
                      "'qvm resume box' goes on when there is some\n", 30)
        self.wait_until(lambda: json.loads(self.succeed("ps", "--json"))[0]["state"] == "paused")
        subprocess.run(["mount", "-o", "remount,size=64M", str(cache)], check=True, timeout=20)
        self.succeed("resume", "box")
        vm.err.expect("qvm: the guest goes on", 10)
        vm.out.expect(r"dd says 0\r", 30)
        self.power_off(vm)

    def test_a_memory_limit(self):
        group = self.memory_cgroup(400 * 2**20)
        vm = self.start("--net", "nat", "-m", "1G", self.demo, before=[
            "sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"])
        vm.wait_for_prompt()
        vm.type("mount -t tmpfs -o size=900M none /mnt; dd if=/dev/zero of=/mnt/fill bs=1M\n")
        self.assertEqual(vm.wait(120), 123)
        self.assertRegex(vm.errors()[-1], r"^qvm: QEMU died: signal 9 \(Killed\), and the kernel's "
                                          "OOM killer was at work: ")

    def memory_cgroup(self, limit):
        """A cgroup of version 1 or 2 with this limit, in bytes; its directory."""
        for root, file in (("memory", "memory.limit_in_bytes"), ("", "memory.max"),
                           ("unified", "memory.max")):
            group = pathlib.Path("/sys/fs/cgroup", root, f"limited-{time.monotonic_ns()}")
            try:
                group.mkdir()
            except OSError:
                continue
            self.addCleanup(group.rmdir)
            if (group / file).exists():
                (group / file).write_text(str(limit))
                return group
        self.skipTest("no cgroup with a memory limit can be made here")


if __name__ == "__main__":
    harness.main()
