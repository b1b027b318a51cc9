"""Groups: VMs that share a namespace, any of which may end first, and by any means."""

import itertools
import os
import pathlib
import signal
import subprocess
import time

import detached
import harness
import picture
import played_host
from detached import kill_and_wait, wait_for
from test_uplink import answers_ping, read_from

GROUP = "lab"
FORGOTTEN = 1  # seconds until the name of a member that was killed is gone
NO_ANSWER = 15  # seconds: a leader that does not answer is given 10
NAMES = ("ann", "bob", "cat", "dan")
DHCP = "udhcpc -n -q -t 10 -T 1 -i eth0 -s /etc/udhcpc.sh -O mtu -O search 2>/dev/null"


class Groups(detached.Test):
    # --- what is asked of members ---------------------------------------------------------------

    def start_members(self, *names, net=("--net", "nat"), group=GROUP):
        return self.start_together(
            *(("--group", group, *net, "--name", name, *self.boot_files()) for name in names))

    def start_hanging(self, *names, group=GROUP, net=()):
        """Members whose guests do nothing; all at the same moment."""
        started = [subprocess.Popen([harness.QVM, "run", "-q", "-d", "--group", group, *net,
                                     "--name", name, str(self.hang)], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL)
                   for name in names]
        self.assertEqual([process.wait(60) for process in started], [0] * len(names))
        return [detached.Guest(self, name) for name in names]

    def leader(self, group=GROUP):
        """The name of the VM that leads, and its supervisor's pid."""
        file = f"{self.host.run}/.groups/{group}/leader"

        def one():
            found = [(name, pid) for name, pid in self.pids(group).items()
                     if file in picture.open_files(pid).values()]
            return found[0] if len(found) == 1 else None
        return wait_for(one)

    def pids(self, group=GROUP):
        """The members' supervisors."""
        return {vm["name"]: vm["pid"] for vm in self.ps() if vm["group"] == group}

    def lookup(self, name, group=GROUP):
        """The address of a name inside the namespace, asked from the host; "" for none."""
        return (self.qvm("net", "exec", group, "--", "getent", "ahostsv4", name).stdout.split()
                or [""])[0]

    def assert_see_each_other(self, guests):
        addresses = {guest.name: guest.address for guest in guests}
        self.assertEqual(len(set(addresses.values())), len(guests), addresses)
        for guest in guests:
            others = [name for name in addresses if name != guest.name]
            said, _ = guest.sh(f"for n in {' '.join(others)}; do ping -c 1 -W 5 $n; done", 60)
            for name in others:
                self.assertIn(f"PING {name} ({addresses[name]})", said)
            self.assertEqual(said.count(" 0% packet loss"), len(others), said)
        for name, address in addresses.items():
            self.assertEqual(self.lookup(name), address)

    def assert_reach_outside(self, guests):
        for guest in guests:
            said = guest.sh(f"wget -q -O - http://{played_host.SERVICE_NAME}/")
            self.assertEqual(said, (f"you are {played_host.ADDRESS}\n", 0))

    def assert_reachable(self, guests):
        """Each at its own host address; without root, from the namespace only."""
        for guest in guests:
            address = guest.inspect()["net"]["host_address"]
            guest.sh("(echo this is $(hostname) | nc -l -p 7000 &)")
            if harness.ROOTLESS:
                self.assertIsNone(address)
                said = wait_for(lambda: self.qvm("net", "exec", GROUP, "--", "bash", "-c",
                                                 f"cat </dev/tcp/{guest.address}/7000").stdout)
            else:
                self.assertTrue(answers_ping(address))
                said = read_from(address, 7000)
            self.assertEqual(said, f"this is {guest.name}\n")

    def assert_leases(self, guests):
        """Asked for anew, and prolonged."""
        for guest in guests:
            said, status = guest.sh(DHCP)
            self.assertEqual(status, 0)
            self.assertIn(f"demo: eth0 {guest.address}/24 ", said)
            said, status = guest.sh(
                "rm /etc/resolv.conf; kill -USR1 $(cat /run/udhcpc.eth0.pid);"
                " for i in $(seq 50); do sleep 0.1; [ -e /etc/resolv.conf ] && break; done;"
                " test -e /etc/resolv.conf")
            self.assertEqual(status, 0, "the lease was not prolonged")

    def assert_forgotten(self, name, since):
        while self.lookup(name):
            self.assertLess(time.monotonic() - since, FORGOTTEN, f"{name} is still known")

    # --- life and death -------------------------------------------------------------------------

    def test_leaders_die_and_the_others_go_on(self):
        guests = self.start_members(*NAMES)
        self.assert_see_each_other(guests)
        self.assert_reach_outside(guests)
        self.assert_reachable(guests)
        self.assertEqual(self.lookup(played_host.SERVICE_NAME), played_host.SERVICE)
        for _ in range(2):
            name, pid = self.leader()
            killed = time.monotonic()
            kill_and_wait(pid)
            guests = [guest for guest in guests if guest.name != name]
            self.assert_forgotten(name, killed)
            self.assertNotEqual(self.leader()[0], name)
            self.assert_see_each_other(guests)
            self.assertIn("NXDOMAIN", guests[0].sh(f"nslookup {name} 2>&1")[0])
            self.assert_leases(guests)
            self.assert_reach_outside(guests)
            self.assert_reachable(guests)
        guests += self.start_members("eve", net=())
        self.assertIn(guests[-1].address, ("192.168.26.10", "192.168.26.11", "192.168.26.12",
                                           "192.168.26.13"))
        self.assert_see_each_other(guests)
        self.assert_reach_outside(guests)
        self.assert_leases(guests)
        for guest in guests:
            self.end(guest)
        self.assert_nothing_left()

    def test_members_end_in_every_order(self):
        for order in itertools.permutations(NAMES[:3]):
            with self.subTest(order=order):
                self.clear()  # what a failed one left
                self.start_hanging(*NAMES[:3])
                for i, name in enumerate(order):
                    self.assertEqual(self.qvm("stop", "-t", "0", name).returncode, 0)
                    stopped = time.monotonic()
                    for other in order[i + 1:]:
                        wait_for(lambda: self.lookup(other), FORGOTTEN)
                    self.assert_forgotten(name, stopped)
                self.assert_nothing_left()

    def test_all_members_end_at_once(self):
        for verb in (("stop", "-t", "0"), ("kill",)):
            with self.subTest(verb=verb):
                self.clear()
                self.start_hanging(*NAMES)
                self.assertEqual(self.qvm(*verb, *NAMES).returncode, 0)
                self.assert_nothing_left()

    def test_all_members_are_killed_at_once(self):
        self.start_hanging(*NAMES)
        kill_and_wait(*self.pids().values())
        done = self.qvm("gc")
        forwarding = [] if harness.ROOTLESS else ["IPv4 forwarding of 'uplink0'"]
        self.assertEqual(sorted(done.stdout.splitlines()),
                         [*forwarding, *(f"VM '{name}'" for name in NAMES), f"group '{GROUP}'"])
        self.assertEqual(self.qvm("gc").stdout, "")
        self.assert_host_as_before(harness.GONE)

    def test_leader_that_does_not_answer(self):
        self.start_hanging("ann")
        self.start_hanging("bob")
        name, pid = self.leader()
        self.assertEqual(name, "ann")
        before = picture.Picture(self.host)
        os.kill(pid, signal.SIGSTOP)
        self.addCleanup(_continue, pid)
        start = time.monotonic()
        joiners = [subprocess.Popen([harness.QVM, "run", "-q", "-d", "--group", GROUP, "--name",
                                     joiner, str(self.hang)], stderr=subprocess.PIPE, text=True)
                   for joiner in ("cat", "dan")]
        for joiner in joiners:
            said = joiner.communicate(timeout=60)[1]
            self.assertEqual(joiner.returncode, 125)
            self.assertRegex(said, f"^qvm: --group '{GROUP}': .*do not answer\n")
        self.assertLess(time.monotonic() - start, NO_ANSWER)
        os.kill(pid, signal.SIGCONT)
        self.assertEqual(picture.difference_to(before, self.host, 2), "")
        cat, = self.start_hanging("cat")
        wait_for(lambda: self.lookup("cat") == cat.address)
        # One that is stopped and killed is no obstacle either.
        os.kill(pid, signal.SIGSTOP)
        kill_and_wait(pid)
        dan, = self.start_hanging("dan")
        wait_for(lambda: self.lookup("dan") == dan.address)
        self.assertEqual(self.lookup("ann"), "")
        self.assertEqual(self.qvm("stop", "-t", "0", "bob", "cat", "dan").returncode, 0)
        self.assert_nothing_left()

    def test_leader_dies_and_the_run_directory_is_full(self):
        """The lead has to wait for room; the guest does not notice."""
        run = str(self.host.run)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,nr_inodes=200", "run", run],
                       check=True)
        self.host.give(run)
        self.addCleanup(subprocess.run, ["umount", "--lazy", run], check=True)
        self.start_hanging("ann")
        bob, = self.start_hanging("bob")
        name, pid = self.leader()
        self.assertEqual(name, "ann")
        other = self.pids()["bob"]
        fillers = []
        with self.assertRaises(OSError):
            for i in range(1000):
                path = self.host.run / f"filler{i}"
                path.touch()
                fillers.append(path)
        kill_and_wait(pid)
        time.sleep(3)
        self.assertIn("qvm", pathlib.Path(f"/proc/{other}/cmdline").read_text())
        for path in fillers:
            path.unlink()
        self.assertEqual(self.leader(), ("bob", other))
        wait_for(lambda: self.lookup("bob") == bob.address)
        cat, = self.start_hanging("cat")
        wait_for(lambda: self.lookup("cat") == cat.address)
        self.assertEqual(self.qvm("kill", "bob", "cat").returncode, 0)
        self.assertEqual(os.listdir(run), [])

    # --- the other kinds of network -------------------------------------------------------------

    def test_isolated(self):
        guests = self.start_members("ann", "bob", net=("--net", "isolated"))
        self.assert_see_each_other(guests)
        for guest in guests:
            for address in (played_host.SERVICE, played_host.ADDRESS):
                said, status = guest.sh(f"nc -w 5 {address} 80 </dev/null 2>&1")
                self.assertNotEqual(status, 0)
                self.assertRegex(said, "unreachable|No route to host")
            self.assertIsNone(guest.inspect()["net"]["host_address"])
        name, pid = self.leader()
        kill_and_wait(pid)
        rest = [guest for guest in guests if guest.name != name]
        self.assert_leases(rest)
        self.end(*rest)
        self.assert_nothing_left()

    @harness.needs_root("flat needs root")
    def test_flat(self):
        guests = self.start_members("ann", "bob", net=("--net", "flat"))
        name, pid = self.leader()
        self.assert_see_each_other(guests)
        self.assert_reach_outside(guests)
        self.assert_reachable(guests)
        for guest in guests:
            self.assertEqual(guest.inspect()["net"]["host_address"], guest.address)
        killed = time.monotonic()
        kill_and_wait(pid)
        rest = [guest for guest in guests if guest.name != name]
        self.assert_forgotten(name, killed)
        self.assert_leases(rest)
        self.assert_reach_outside(rest)
        self.assert_reachable(rest)
        self.end(*rest)
        self.assert_nothing_left()

    def test_two_groups_and_vms_that_were_created(self):
        kernel = self.boot_files()
        for name, group in (("ann", "one"), ("bob", "one"), ("cat", "two")):
            done = self.qvm("create", "--group", group, "--name", name, "--net", "nat", *kernel)
            self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("ann", "bob", "cat"):
            self.assertEqual(self.qvm("start", name).returncode, 0)
        ann, bob, cat = [detached.Guest(self, name).attach() for name in ("ann", "bob", "cat")]
        self.assertEqual(ann.address, cat.address)
        if not harness.ROOTLESS:
            self.assertNotEqual(ann.inspect()["net"]["host_address"],
                                cat.inspect()["net"]["host_address"])
        self.assertEqual(ann.sh("ping -c 1 -W 5 bob")[1], 0)
        self.assertEqual(bob.sh("ping -c 1 -W 5 ann")[1], 0)
        for guest, other in ((ann, cat), (bob, cat), (cat, ann), (cat, bob)):
            self.assertIn("NXDOMAIN", guest.sh(f"nslookup {other.name} 2>&1")[0])
        if not harness.ROOTLESS:
            host_address = cat.inspect()["net"]["host_address"]
            self.assertNotEqual(ann.sh(f"ping -c 1 -W 2 {host_address}")[1], 0)
        self.assertNotEqual(cat.sh(f"ping -c 1 -W 2 {bob.address}")[1], 0)
        self.assert_reach_outside((ann, bob, cat))
        self.assertEqual({network["name"]: [vm["name"] for vm in network["vms"]]
                          for network in self.networks()}, {"one": ["ann", "bob"], "two": ["cat"]})
        self.end(ann)
        self.assertEqual(self.qvm("start", "ann").returncode, 0)
        again = detached.Guest(self, "ann").attach()
        self.assertEqual(bob.sh("ping -c 1 -W 5 ann")[1], 0)
        self.assertEqual(again.sh("ping -c 1 -W 5 bob")[1], 0)
        done = self.qvm("rm", "-f", "ann", "bob", "cat")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_nothing_left()

    # --- members that do not fit ----------------------------------------------------------------

    def test_members_that_do_not_fit(self):
        ann, = self.start_hanging("ann", net=("--net", "nat,subnet=192.168.70.0/24,mtu=1400"))
        before = picture.Picture(self.host)
        for net, why in (("isolated", "the group's network is nat"),
                         ("flat", "needs root" if harness.ROOTLESS else "the group's network is nat"),
                         ("nat,subnet=192.168.71.0/24", "the group's network is 192.168.70.0/24"),
                         ("nat,mtu=1300", "the group's network has 1400"),
                         ("nat,pool=10.99.0.0/16", "goes with the veth uplink"
                          if harness.ROOTLESS else "the group's host addresses are"),
                         (f"nat,address={ann.address}", "another guest"),
                         ("nat,address=192.168.71.5", "not in the subnet"),
                         ("nat,address=192.168.70.1", "the gateway's"),
                         (f"nat,mac={ann.inspect()['net']['mac']}", "another guest")):
            with self.subTest(net=net):
                done = self.run_detached("--group", GROUP, "--net", net, "--name", "bob", self.hang)
                self.assert_refused(done, f"--net {net.split(',')[0]}.*{why}")
                self.assertEqual(picture.difference_to(before, self.host, 2), "")
        for net in ("none", "user"):
            with self.subTest(net=net):
                done = self.run_detached("--group", GROUP, "--net", net, self.hang)
                self.assert_refused(done, "--group")
        for before_it, options, why in (
                (["env", "QVM_CACHE_DIR=/proc/none"], (), "create directory '/proc/none'"),
                ([], ("--qemu-arg=-no-such-option",), "start QEMU: .*-no-such-option")):
            with self.subTest("fails when it has joined", why=why):
                done = self.qvm("run", "-q", "-d", "--group", GROUP, "--name", "bob", *options,
                                self.hang, before=before_it)
                self.assert_refused(done, why)
                self.assertEqual(picture.difference_to(before, self.host, 2), "")
        bob, = self.start_hanging("bob")
        self.assertEqual({key: bob.inspect()["net"][key] for key in ("mode", "subnet", "mtu")},
                         {"mode": "nat", "subnet": "192.168.70.0/24", "mtu": 1400})
        self.assertEqual(bob.address, "192.168.70.11")
        cat, = self.start_hanging("cat", net=("--net", "nat,address=192.168.70.99,mtu=1400"))
        self.assertEqual(cat.address, "192.168.70.99")
        self.assertEqual(wait_for(lambda: self.lookup("cat")), "192.168.70.99")
        self.end(ann, bob, cat)
        self.assert_nothing_left()


def _continue(pid):
    if pathlib.Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    harness.main()
