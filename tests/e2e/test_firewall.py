"""Guests beside the host's firewall: a way that works, or the name of what stands in it."""

import json
import subprocess

import harness
import picture
from played_host import ADDRESS, SERVICE

DOCKER = """
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""
DEFAULT_DROP = """
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
    }
}
"""
FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        reject with icmpx type admin-prohibited
    }
}
"""
# What the host itself sends.
OUTPUT_DROP = """
table inet filter {
    chain output {
        type filter hook output priority filter; policy drop;
        ct state established,related accept
        oifname lo accept
    }
}
"""
# What is swallowed before it is to be forwarded, and after.
RAW = "table ip raw { chain pre { type filter hook prerouting priority raw\n iifname \"qvm-*\" drop\n }\n }"
LATE = "table ip late { chain post { type filter hook postrouting priority 300\n iifname \"qvm-*\" drop\n }\n }"

CHAINS = {
    "docker": (DOCKER, r"ip filter FORWARD, policy drop \(Docker's\)"),
    "default drop": (DEFAULT_DROP, "inet filter forward, policy drop"),
    "firewalld": (FIREWALLD, r"inet firewalld filter_FORWARD, rule 'reject with icmpx (type )?"
                             r"admin-prohibited' \(firewalld's\)"),
    "raw": (RAW, "ip raw pre, rule 'iifname \"qvm-\\*\" drop'"),
    "late": (LATE, "ip late post, rule 'iifname \"qvm-\\*\" drop'"),
}
SAYS = "the host's firewall drops what the guest sends: "


@harness.needs_root("without it nothing is forwarded")
class Firewall(harness.Test):
    def load(self, rules):
        tool = ["iptables-restore"] if rules.startswith("\n*") else ["nft", "-f", "-"]
        subprocess.run(tool, input=rules, text=True, check=True, timeout=20)

    def flush(self):
        subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=20)

    def tables(self):
        return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True,
                              timeout=20).stdout.splitlines()

    def assert_reaches_outside(self, vm):
        self.assertEqual(vm.sh(f"wget -q -O - http://{SERVICE}/"), (f"you are {ADDRESS}\n", 0))

    def notes(self, vm):
        return [line for line in vm.errors() if "KVM" not in line]

    def test_another_way_is_taken(self):
        for name, (rules, what) in CHAINS.items():
            with self.subTest(name):
                self.load(rules)
                self.addCleanup(self.flush)
                before = picture.Picture(self.host)
                vm = self.boot("--net", "nat", "--name", name.replace(" ", "-"), *self.boot_files())
                (note,) = self.notes(vm)
                self.assertRegex(note, f"^qvm: {SAYS}{what}; so pasta is the uplink$")
                (net,) = [vm["net"] for vm in self.ps()]
                self.assertEqual((net["uplink"], net["host_address"]), ("pasta", None))
                self.assert_reaches_outside(vm)
                self.assertEqual(picture.difference_to(before, self.host, 0, [
                    "links", "addresses", "routes", "sysctls"]), "")
                self.assertEqual([table for table in self.tables() if "qvm" in table], [])
                self.power_off(vm)
                self.flush()

    def test_who_wants_the_veth_is_told(self):
        for name, (rules, what) in CHAINS.items():
            for options in (("--net", "nat", "--uplink", "veth"), ("--net", "flat")):
                with self.subTest(name, options=options):
                    self.load(rules)
                    self.addCleanup(self.flush)
                    vm = self.start("--name", "box", *options, self.hang)
                    vm.out.expect(harness.STARTED, 60)
                    (note,) = self.notes(vm)
                    self.assertRegex(note, f"^qvm: {SAYS}{what}$")
                    problems = json.loads(self.succeed("inspect", "box"))[0]["problems"]
                    self.assertRegex(problems["network"], f"^{SAYS}{what}$")
                    self.interrupt(vm)
                    self.flush()

    def test_rules_that_come_later(self):
        for options in ((), ("--uplink", "pasta"), ("--group", "cluster")):
            with self.subTest(options=options):
                vms = []  # the first of a group leads
                for name in ("box", "other") if "--group" in options else ("box",):
                    vms.append(self.start("--net", "nat", "--name", name, *options, self.hang))
                    vms[-1].out.expect(harness.STARTED, 60)
                rules, what = ((OUTPUT_DROP, "inet filter output, policy drop")
                               if "pasta" in options else CHAINS["default drop"])
                self.load(rules)
                self.addCleanup(self.flush)
                vms[0].err.expect(f"qvm: {SAYS}{what}\n", 20)
                self.assertEqual(json.loads(self.succeed("inspect", "box"))[0]["problems"],
                                 {"network": SAYS + what})
                self.flush()
                vms[0].err.expect("qvm: the guest reaches the outside again\n", 20)
                self.assertEqual(json.loads(self.succeed("inspect", "box"))[0]["problems"], {})
                self.interrupt(vms.pop(0))
                for vm in vms:  # one of a group tells, and then the next
                    self.assertEqual(self.notes(vm), [])
                    self.load(rules)
                    vm.err.expect(f"qvm: {SAYS}{what}\n", 20)
                    self.flush()
                    self.interrupt(vm)

    def test_what_the_host_itself_sends(self):
        what = "inet filter output, policy drop"
        for rules, options, notes in (
                (OUTPUT_DROP, ("--uplink", "pasta"), (f"{SAYS}{what}",)),
                (OUTPUT_DROP, (), ()),  # what is forwarded is not
                (OUTPUT_DROP + DEFAULT_DROP, (),
                 (f"{SAYS}{CHAINS['default drop'][1]}; so pasta is the uplink", f"{SAYS}{what}"))):
            with self.subTest(options=options, notes=notes):
                self.load(rules)
                self.addCleanup(self.flush)
                vm = self.start("--net", "nat", "--name", "box", *options, self.hang)
                vm.out.expect(harness.STARTED, 60)
                self.assertEqual(self.notes(vm), [f"qvm: {note}" for note in notes])
                self.interrupt(vm)
                self.flush()

    def test_a_firewall_that_lets_it_pass(self):
        for lets in ("accept", "tcp dport { 80, 443 } accept"):
            with self.subTest(lets):
                self.load(DEFAULT_DROP.replace("ct state", f'iifname "qvm-*" {lets}\n        ct state'))
                self.addCleanup(self.flush)
                vm = self.boot("--net", "nat", "--name", "box", *self.boot_files())
                self.assertEqual(self.notes(vm), [])
                (net,) = [vm["net"] for vm in self.ps()]
                self.assertEqual((net["uplink"], net["host_address"]), ("veth", "10.213.0.1"))
                self.assert_reaches_outside(vm)
                self.power_off(vm)
                self.flush()

    def test_the_probe_leaves_nothing_and_goes_nowhere(self):
        vm = self.start("--net", "nat", self.hang)
        vm.out.expect(harness.STARTED, 60)
        self.assertRegex("\n".join(self.tables()), r"^table inet qvm-[0-9a-f]{8}$")
        self.interrupt(vm)


if __name__ == "__main__":
    harness.main()
