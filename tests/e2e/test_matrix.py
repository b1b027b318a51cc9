"""A guest beside each of the firewalls and routes that a host may have, set up by their own packages
in a tree of Debian: it reaches the outside, or is told what is in the way; and its connection goes on
when they are reloaded. Takes minutes, so QVM_MATRIX=1 asks for it. Prints the table of
docs/networking.md."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

import detached
import harness
import picture
import played_host
from played_host import ADDRESS, ADDRESS6, SERVICE, SERVICE6, SERVICE_NAME
from test_firewall import DEFAULT_DROP, DOCKER

TREE = os.environ.get("QVM_FIREWALLS", "")
NFTABLES_CONF = """flush ruleset
table inet filter {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname lo accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
    }
""" + DEFAULT_DROP.partition("{\n")[2]


def run(*command, stdin=None):
    """Its output goes to a file: who stays in the background keeps a pipe open."""
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(command, timeout=60, stdout=out, stderr=out, text=True,
                              **({"input": stdin} if stdin else {"stdin": subprocess.DEVNULL}))
        out.seek(0)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.returncode}: {out.read()}")


class Tree:
    """The packages' tree as a root file system on this host: what they write is gone afterwards."""

    def __init__(self, host):
        self.path = host.base / "tree"
        self.written = host.base / "tree-written"

    def __enter__(self):
        for path in (self.path, self.written):
            path.mkdir()
        run("mount", "-t", "tmpfs", "tree", self.written)
        for name in ("upper", "work"):
            (self.written / name).mkdir()
        run("mount", "-t", "overlay", "tree", "-o", f"lowerdir={os.path.realpath(TREE)},"
            f"upperdir={self.written}/upper,workdir={self.written}/work", self.path)
        for name in ("proc", "sys", "dev"):
            run("mount", "--rbind", f"/{name}", self.path / name)
        run("mount", "-t", "tmpfs", "run", self.path / "run")
        return self

    def run(self, *command):
        run("chroot", self.path, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command)

    def __exit__(self, *_):
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "root") == str(self.path):
                    os.kill(int(process.name), 9)
        run("umount", "-R", "-l", self.path)
        run("umount", self.written)
        for path in (self.path, self.written):
            path.rmdir()


# Each sets itself up and returns what reloads it. --------------------------------------------------


def nothing(_):
    return lambda: None


def docker(_):
    def load():
        run("iptables-restore", stdin=DOCKER)
    load()
    return load


def ufw(tree):
    tree.run("ufw", "--force", "enable")
    return lambda: tree.run("ufw", "reload")


def firewalld(tree):
    tree.run("mkdir", "-p", "/run/dbus")
    tree.run("dbus-daemon", "--system", "--fork")
    tree.run("firewalld")
    tree.run("sh", "-c", "for try in $(seq 100); do firewall-cmd --state && exit; sleep 0.1; done; exit 1")
    return lambda: tree.run("firewall-cmd", "--reload")


def nftables_conf(_):
    def load():
        run("nft", "-f", "-", stdin=NFTABLES_CONF)
    load()
    return load


def libvirt(tree):
    """Its network. The driver for QEMU is not needed for that, and wants accounts."""
    tree.run("sh", "-c", "rm -f /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so; "
             "mkdir -p /var/log/libvirt; libvirtd -d")

    def restart():
        tree.run("sh", "-c", "for try in $(seq 100); do virsh -c network:///system net-list && break; "
                 "sleep 0.1; done; virsh -c network:///system net-destroy default; "
                 "virsh -c network:///system net-start default")
    restart()
    return restart


def _second_link(name, address, router, address6, router6):
    other = host().internet.pid
    played_host.ip("link", "add", name, "type", "veth", "peer", "name", "far0", "netns", str(other))
    for own, link, pid in (((address, address6), name, None), ((router, router6), "far0", other)):
        played_host.ip("address", "add", f"{own[0]}/24", "dev", link, pid=pid)
        played_host.ip("address", "add", f"{own[1]}/64", "dev", link, "nodad", pid=pid)
        played_host.ip("link", "set", link, "up", pid=pid)


VPN, VPN6 = "10.66.0.2", "fd66::2"
SECOND, SECOND6 = "192.0.2.2", "2001:db8:2::2"


def vpn(_):
    """As wg-quick(8) does it."""
    _second_link("wg0", VPN, "10.66.0.1", VPN6, "fd66::1")
    for family, router in (("-4", "10.66.0.1"), ("-6", "fd66::1")):
        played_host.ip(family, "route", "add", "default", "via", router, "dev", "wg0", "table", "51820")
        played_host.ip(family, "rule", "add", "not", "fwmark", "51820", "table", "51820")
        played_host.ip(family, "rule", "add", "table", "main", "suppress_prefixlength", "0")
    run("nft", "-f", "-", stdin=f"""table ip wg-quick-wg0 {{
        chain preraw {{ type filter hook prerouting priority -300
            iifname != "wg0" ip daddr {VPN} fib saddr type != local drop
        }}
    }}""")
    return lambda: None


def policy_route(_):
    _second_link("wan1", SECOND, "192.0.2.1", SECOND6, "2001:db8:2::1")
    for family, service, router in (("-4", SERVICE, "192.0.2.1"), ("-6", SERVICE6, "2001:db8:2::1")):
        played_host.ip(family, "route", "add", "default", "via", router, "dev", "wan1", "table", "200")
        played_host.ip(family, "rule", "add", "to", service, "lookup", "200")
    return lambda: None


def remove_links():
    for family in ("-4", "-6"):
        for table in ("51820", "200"):
            while subprocess.run(["ip", family, "rule", "del", "table", table], capture_output=True).returncode == 0:
                pass
        subprocess.run(["ip", family, "rule", "del", "table", "main", "suppress_prefixlength", "0"],
                       capture_output=True)
    for link in ("wg0", "wan1", "virbr0"):
        subprocess.run(["ip", "link", "del", link], capture_output=True)


def host():
    return harness.host


#: What is beside qvm: how it is set up; what drops a forwarded packet; whom the service sees.
BESIDE = {
    "nothing": (nothing, None, (ADDRESS, ADDRESS6)),
    "Docker (iptables-nft, policy DROP)": (
        docker, r"ip filter FORWARD, policy drop \(Docker's\)", (ADDRESS, ADDRESS6)),
    "ufw": (ufw, r"ip filter (FORWARD|ufw-[a-z-]*), .* \(ufw's\)", (ADDRESS, ADDRESS6)),
    "firewalld": (firewalld, r"inet firewalld filter_F[a-zA-Z_]+, rule 'reject .*' \(firewalld's\)",
                  (ADDRESS, ADDRESS6)),
    "nftables.conf, default drop": (nftables_conf, "inet filter forward, policy drop",
                                    (ADDRESS, ADDRESS6)),
    "libvirt's network": (libvirt, None, (ADDRESS, ADDRESS6)),
    "VPN (wg-quick's rules)": (vpn, None, (VPN, VPN6)),
    "policy route": (policy_route, None, (SECOND, SECOND6)),
}
UPLINKS = ("auto",) if harness.ROOTLESS else ("auto", "veth", "pasta")
SAYS = "the host's firewall drops what the guest sends: "


class Matrix(detached.Test):
    rows = []

    @classmethod
    def tearDownClass(cls):
        who = "a user" if harness.ROOTLESS else "root"
        print("\n| beside | " + " | ".join(f"{who}, {uplink}" for uplink in UPLINKS) + " |")
        print("| --- |" + " --- |" * len(UPLINKS))
        for row in cls.rows:
            print("| " + " | ".join(row) + " |", flush=True)

    def setUp(self):
        self.host = harness.host
        self.host.add_ipv6()
        self.addCleanup(self.host.remove_ipv6)
        super().setUp()

    @contextlib.contextmanager
    def beside(self, set_up):
        """What reloads it. The host is as before afterwards."""
        sysctls = {line.partition(" = ")[0]: line.partition(" = ")[2]
                   for line in picture.Picture(self.host, ["sysctls"]).sections["sysctls"]}
        try:
            with Tree(self.host) as tree:
                yield tree, set_up(tree)
        finally:
            run("nft", "flush", "ruleset")
            remove_links()
            for path, value in sysctls.items():
                with contextlib.suppress(OSError):
                    if pathlib.Path(path).read_text().strip() != value:
                        pathlib.Path(path).write_text(value)

    def get(self, vm, where):
        return vm.sh(f"timeout 10 wget -q -O - http://{where}/ 2>&1")[0]

    def assert_reaches_outside(self, vm, seen):
        vm.wait_for_ipv6()
        self.assertEqual([self.get(vm, SERVICE_NAME), self.get(vm, SERVICE), self.get(vm, f"[{SERVICE6}]")],
                         [f"you are {address}\n" for address in (seen[0], *seen)])

    def assert_connection_lasts(self, vm, disturb):
        vm.sh(f"(sleep 600 | nc {SERVICE} 37 >/tmp/ticks &)")
        ticks = lambda: int(vm.sh("tail -n 2 /tmp/ticks | sed -n '1s/tick //p'")[0] or 0)
        self.wait_until(lambda: ticks() > 3)
        disturb()
        at = ticks()
        self.wait_until(lambda: ticks() > at + 20)  # a second's

    def try_uplink(self, uplink, drops, seen, reload):
        with self.start_guest(uplink) as (vm, net):
            notes = [line for line in vm.errors() if "KVM" not in line]
            expected = {None: "^$", "auto": f"^qvm: {SAYS}{drops}; so pasta is the uplink$",
                        "veth": f"^qvm: {SAYS}{drops}$"}
            tells = drops if uplink in ("auto", "veth") and not harness.ROOTLESS else None
            self.assertRegex("\n".join(notes), expected[uplink if tells else None])
            if tells and uplink == "veth":
                return "is told"
            self.assert_reaches_outside(vm, seen)
            # In this order: with the ruleset the host forgets its own connections, pasta's among
            # them, and what it loads then takes none of them for established.
            for disturb in (reload, lambda: run("nft", "flush", "ruleset")):
                self.assert_connection_lasts(vm, disturb)
                vm.sh("kill $(pidof nc sleep)")
            self.assert_reaches_outside(vm, seen)
            return net["uplink"] if uplink == "auto" else "reaches it"

    def try_remedy(self, tree, seen):
        """As doctor says it, until it is content: IPv4 and IPv6 may be two chains."""
        for _ in range(2):
            (found,) = [each for each in json.loads(self.succeed("doctor", "--json"))
                        if each["name"] == "firewall"]
            if found["status"] == "ok":
                break
            tree.run("sh", "-c", found["remedy"])
        with self.start_guest("veth") as (vm, _):
            self.assertEqual([line for line in vm.errors() if "KVM" not in line], [])
            self.assert_reaches_outside(vm, seen)

    @contextlib.contextmanager
    def start_guest(self, uplink):
        vm = self.start("--net", "nat", "--uplink", uplink, "--name", "box", self.demo)
        try:
            vm.wait_for_prompt()
            (net,) = [each["net"] for each in self.ps()]
            yield vm, net
        finally:
            self.interrupt(vm)

    def test_beside(self):
        only = os.environ.get("QVM_MATRIX_ONLY", "")
        for name, (set_up, drops, seen) in BESIDE.items():
            if only not in name:
                continue
            row = [name]
            for uplink in UPLINKS:
                with self.subTest(name, uplink=uplink), self.beside(set_up) as (tree, reload):
                    row.append("fails")
                    how = self.try_uplink(uplink, drops, seen, reload)
                    if how == "is told":
                        self.try_remedy(tree, seen)
                    row[-1] = how
            self.rows.append(row)


if __name__ == "__main__":
    if not os.path.isdir(TREE):
        harness._skip("takes minutes, and a tree of the firewalls' packages: QVM_MATRIX=1")
    harness.main()
