"""nat, flat, user and none: what the guest reaches, and how it is seen from there."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import time

import harness
import picture
import played_host
from played_host import ADDRESS, SERVICE, SERVICE_NAME

MTU = 1400


def host_links():
    """The names of qvm's links on the host."""
    told = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True, timeout=20)
    return [link["ifname"] for link in json.loads(told.stdout) if link["ifname"].startswith("qvm-")]


def read_from(address, port):
    """What a TCP server says that is just starting."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection((address, port), 20) as connection:
                return connection.makefile().read()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def answers_ping(address):
    """Whether an ICMP echo request (RFC 792) from the host is answered."""
    header = struct.pack("!BBHHH", 8, 0, 0, 0x716d, 1)
    checksum = 0xffff - sum(struct.unpack("!4H", header)) % 0xffff
    request = header[:2] + struct.pack("!H", checksum) + header[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(10)
        raw.sendto(request, (address, 0))
        answer, (sender, _) = raw.recvfrom(1500)
    return sender == address and answer[20] == 0


class Uplink(harness.Test):
    def assert_reaches_outside(self, vm):
        """By address and by name; and the server sees the host, not the guest."""
        for target in (SERVICE, SERVICE_NAME):
            said, status = vm.sh(f"wget -q -O - http://{target}/")
            self.assertEqual((said, status), (f"you are {ADDRESS}\n", 0))
        self.assertIn("NXDOMAIN", vm.sh("nslookup no-such-name.example 2>&1")[0])

    def assert_host_reaches(self, vm, address, port):
        vm.sh(f"(echo this is $(hostname) | nc -l -p {port} &)")
        name = vm.sh("hostname")[0].strip()
        self.assertEqual(read_from(address, port), f"this is {name}\n")

    def assert_own_network(self, vm, mtu):
        self.assertIn("inet 192.168.26.10/24", vm.sh("ip -4 addr show eth0")[0])
        self.assertIn(f"mtu {mtu} ", vm.sh("ip link show eth0")[0])
        self.assertEqual(vm.sh("ping -c 1 -W 5 192.168.26.1")[1], 0)
        self.assertEqual(vm.sh("ping -c 1 -W 5 gateway")[1], 0)
        name = vm.sh("hostname")[0].strip()
        self.assertIn("192.168.26.10", vm.sh(f"nslookup {name} $(sed -n 's/nameserver //p' "
                                             "/etc/resolv.conf)")[0])

    def test_two_nat_guests_with_one_inner_address(self):
        self.host.set_mtu(MTU)
        self.addCleanup(self.host.set_mtu, 1500)
        first = self.start("--net", "nat", "--name", "first", self.demo)
        first.out.expect(".", 60)  # it has taken its /31
        second = self.start("--net", "nat", "--name", "second", self.demo)
        for vm in (first, second):
            vm.wait_for_prompt()
        for vm, host_address in ((first, "10.213.0.1"), (second, "10.213.0.3")):
            self.assert_own_network(vm, MTU)
            self.assert_reaches_outside(vm)
            if not harness.ROOTLESS:
                self.assert_host_reaches(vm, host_address, 7000)
            # A full packet passes.
            self.assertEqual(vm.sh(f"ping -c 1 -W 5 -s {MTU - 28} {SERVICE}")[1], 0)
        links = 0 if harness.ROOTLESS else 1  # for each
        self.assertEqual(len(host_links()), 2 * links)
        self.power_off(first)
        self.assertEqual(len(host_links()), links)  # at once
        self.assert_reaches_outside(second)
        self.power_off(second)
        self.assertEqual(host_links(), [])

    def test_pasta(self):
        """Nothing of the host is changed, and its end is a new beginning."""
        vm = self.boot("--net", "nat", "--uplink", "pasta", "--name", "box", "-p", "0:7000", self.demo)
        vm.name = "box"
        self.assert_own_network(vm, 1500)
        self.assert_reaches_outside(vm)
        net = json.loads(self.succeed("inspect", "box"))[0]["net"]
        self.assertEqual((net["uplink"], net["host_address"]), ("pasta", None))
        changed = [name for name in ("links", "addresses", "routes", "nft ruleset", "sysctls")
                   if picture.difference_to(self.before, self.host, 0, [name])]
        self.assertEqual(changed, [])
        time.sleep(1)  # so that it was up
        for number in (signal.SIGKILL, signal.SIGTERM):
            old = vm.child("passt")  # which is what it executes
            os.kill(old, number)
            vm.err.expect("qvm: pasta died: [^\n]*; it is started again\n", 10)
            self.wait_until(lambda: vm.child("passt") != old)
            self.wait_until(lambda: vm.sh(f"wget -q -O - http://{SERVICE}/")[1] == 0)
            time.sleep(1.2)
        self.assert_reaches_outside(vm)
        # Nothing of the host's own is open to the guest.
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            for address in ("10.213.0.0", "10.213.0.1", "127.0.0.1"):
                self.assertNotEqual(vm.sh(f"nc -w 2 {address} {port} </dev/null 2>&1")[1], 0)
        self.power_off(vm)

    def test_names_that_do_not_resolve(self):
        """No name server at all, one that is silent, and one that works again."""
        conf = self.host.resolv_conf
        self.addCleanup(conf.write_text, conf.read_text())
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.55", 53))
        for text, why in (("", "127.0.0.1: Connection refused"),
                          ("nameserver 127.0.0.54\nnameserver 127.0.0.55\n",
                           "127.0.0.54: Connection refused, 127.0.0.55: no answer")):
            with self.subTest(why):
                conf.write_text(text)
                vm = self.boot("--net", "nat", "--name", "box", *self.boot_files())
                says = ("names do not resolve in the guest: the host's name servers "
                        f"(/etc/resolv.conf) do not answer ({why})")
                vm.err.expect(f"qvm: {re.escape(says)}\n", 20)
                self.assertEqual(json.loads(self.succeed("inspect", "box"))[0]["problems"],
                                 {"names": says})
                conf.write_text("nameserver 127.0.0.53\n")
                self.assert_reaches_outside(vm)
                vm.err.expect("qvm: names resolve in the guest again\n", 20)
                self.assertEqual(json.loads(self.succeed("inspect", "box"))[0]["problems"], {})
                self.power_off(vm)

    def test_uplinks_that_are_not_to_be_had(self):
        self.assert_refused(self.qvm("run", "--net", "nat", "--uplink", "wifi", self.hang),
                            "--uplink 'wifi': is not an uplink", hint="veth")
        self.assert_refused(self.qvm("run", "--net", "isolated", "--uplink", "pasta", self.hang),
                            "--uplink pasta: goes with --net nat only")
        self.assert_refused(self.qvm("run", "--net", "nat,pool=10.9.0.0/16", "--uplink", "pasta",
                                     self.hang), "pool 10.9.0.0/16: goes with the veth uplink")
        if harness.ROOTLESS:
            self.assert_refused(self.qvm("run", "--net", "nat", "--uplink", "veth", self.hang),
                                "--uplink veth: needs root", hint="pasta")
            self.assert_refused(self.qvm("run", "--net", "flat", self.hang),
                                "--net flat: needs root", hint="nat")

    @harness.needs_root("flat needs root")
    def test_flat(self):
        vm = self.boot("--net", "flat", "--name", "box", self.demo)
        self.assert_own_network(vm, 1500)
        self.assert_reaches_outside(vm)
        self.assertTrue(answers_ping("192.168.26.10"))
        self.assert_host_reaches(vm, "192.168.26.10", 7000)
        self.assertIn("192.168.26.1/24", _address_of(host_links()[0]))
        bridge = vm.sh("ping -c 1 -W 5 192.168.26.2")
        self.assertEqual(bridge[1], 0, bridge[0])
        # The subnet is the host's now: a second flat guest takes the next one.
        plan = self.qvm("run", "-q", "--dry-run", "--net", "flat", self.demo)
        self.assertIn("192.168.27.2/24", plan.stdout)
        self.power_off(vm)
        self.assert_host_as_before(0, "links", "addresses", "routes", "nft ruleset", "sysctls",
                                   "processes", "run directory")

    def test_user(self):
        vm = self.start("--net", "user", *self.boot_files())
        vm.wait_for_prompt()
        self.assertIn("inet 10.0.2.15/24", vm.sh("ip -4 addr show eth0")[0])
        self.assertEqual(vm.sh(f"wget -q -O - http://{SERVICE}/")[0], f"you are {ADDRESS}\n")
        self.assertEqual(host_links(), [])
        self.power_off(vm)

    def bridge(self):
        """A LAN of the host's, where somebody gives out addresses: the bridge's name."""
        played_host.ip("link", "add", "br9", "type", "bridge")
        self.addCleanup(played_host.ip, "link", "del", "br9")
        played_host.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        self.addCleanup(played_host.ip, "link", "del", "lan0")
        played_host.ip("link", "set", "lan0", "master", "br9")
        played_host.ip("address", "add", "10.99.0.1/24", "dev", "br9")
        played_host.ip("link", "set", "br9", "mtu", "1400", "up")
        dhcp = subprocess.Popen(["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground",
                                 "--pid-file=", "--user=root", "--port=0", "--interface=br9",
                                 "--bind-interfaces", "--leasefile-ro", "--no-ping",
                                 "--dhcp-range=10.99.0.10,10.99.0.10"], stderr=subprocess.DEVNULL)
        self.addCleanup(dhcp.wait)
        self.addCleanup(dhcp.terminate)
        return "br9"

    def test_bridge_of_the_host(self):
        if harness.ROOTLESS:
            self.assert_refused(self.qvm("run", "--net", "bridge=br9", self.demo), "needs root",
                                "--net nat needs no root")
            return
        bridge = self.bridge()
        address = self._mac_of(bridge)
        vm = self.start("--net", f"bridge={bridge}", "--name", "lan", *self.boot_files())
        vm.wait_for_prompt()
        self.wait_until(lambda: "inet 10.99.0.10/24" in vm.sh("ip -4 addr show eth0")[0])
        self.assertIn("mtu 1400 ", vm.sh("ip link show eth0")[0])
        self.assertTrue(answers_ping("10.99.0.10"))
        (net,) = [each["net"] for each in self.ps()]
        self.assertEqual((net["mode"], net["bridge"], net["mac"], net["address"]),
                         ("bridge", bridge, vm.sh("cat /sys/class/net/eth0/address")[0].strip(),
                          None))
        self.assertEqual(self._mac_of(bridge), address)
        self.assertEqual(host_links(), [net["host_link"]])
        vm.sh("ip link set eth0 down; ip link set eth0 address 52:54:00:99:99:99;"
              "ip link set eth0 up; ip route add 10.99.0.1 dev eth0")
        self.assertNotEqual(vm.sh("ping -c 1 -w 3 10.99.0.1")[1], 0)
        self.assert_refused(self.qvm("ssh", "lan"), "its LAN's, not qvm's to know")
        os.kill(self.supervisor_of("lan"), signal.SIGKILL)
        vm.wait()
        self.wait_until(lambda: host_links() == [])
        self.sweep()

    def test_bridge_that_is_none(self):
        if harness.ROOTLESS:
            self.skipTest("needs root")
        for name, why in (("nowhere", "there is no such interface"),
                          (played_host.UPLINK, "the interface is not a bridge")):
            self.assert_refused(self.qvm("run", "--net", f"bridge={name}", self.demo),
                                f"--net: bridge '{name}': {why}")

    def _mac_of(self, link):
        return json.loads(subprocess.run(["ip", "-j", "link", "show", link], capture_output=True,
                                         check=True, timeout=20).stdout)[0]["address"]

    def test_none(self):
        vm = self.start("--net", "none", *self.boot_files())
        vm.wait_for_prompt()
        self.assertEqual(vm.sh("ls /sys/class/net")[0].split(), ["lo"])
        self.power_off(vm)


def _address_of(link):
    return subprocess.run(["ip", "-o", "-4", "address", "show", "dev", link], capture_output=True,
                          text=True, check=True, timeout=20).stdout


if __name__ == "__main__":
    harness.main()
