"""Who a guest is and whom it reaches: IPv6, port security, port isolation, the host itself."""

import http.server
import pathlib
import socket
import subprocess
import threading

import harness
import played_host
from played_host import ADDRESS, ADDRESS6, SERVICE, SERVICE6, UPLINK

UPLINKS = ("pasta",) if harness.ROOTLESS else ("veth", "pasta")
NOBODY = 7302  # another user
OWN6 = "fd71:766d:26::a"
GATEWAY6 = "fd71:766d:26::1"
REFUSED = "Connection refused"


class HostServer(http.server.ThreadingHTTPServer):
    """A service of the host's on all of its addresses, IPv4's and IPv6's."""
    address_family = socket.AF_INET6


class Greet(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the host\n")

    def log_message(self, *_):
        pass


class Addresses(harness.Test):
    # --- what guests are asked ------------------------------------------------------------------

    def boot_demo(self, *options):
        return self.boot(*options, self.demo)

    def pings(self, vm, address, *options):
        return vm.sh(" ".join(["ping", "-c 1 -W 2", *options, address]))[1] == 0

    def pings_as(self, vm, address6):
        """Whether the router answers a guest with that address; DHCPv6 gives the demo guest none."""
        vm.sh(f"ip -6 addr add {address6}/64 dev eth0; sleep 2")  # it is tentative for a second
        answered = self.pings(vm, GATEWAY6)
        vm.sh(f"ip -6 addr del {address6}/64 dev eth0")
        return answered

    def get(self, vm, address, port=80):
        where = f"[{address}]" if ":" in address else address
        return vm.sh(f"wget -q -O - http://{where}:{port}/ 2>&1")[0]

    def serve_on_host(self):
        server = HostServer(("::", 0), Greet)
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_port

    def publish_as_docker_does(self, port, address, to):
        table = f"""table ip docker {{
            chain p {{ type nat hook prerouting priority dstnat
                fib daddr type local tcp dport {port} dnat to {address}:{to}
            }}
        }}"""
        subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True, timeout=20)
        self.addCleanup(subprocess.run, ["nft", "delete table ip docker"], check=True, timeout=20)

    def with_ipv6(self):
        self.host.add_ipv6()
        self.addCleanup(self.host.remove_ipv6)
        if "veth" in UPLINKS and not pathlib.Path(
                "/proc/sys/net/ipv6/conf/all/force_forwarding").exists():
            self.skipTest("this kernel forwards IPv6 for all interfaces or for none (< 6.17)")

    # --- IPv6 -----------------------------------------------------------------------------------

    def test_ipv6_reaches_outside_where_the_host_does(self):
        self.with_ipv6()
        accept_ra = pathlib.Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/accept_ra")
        self.assertEqual(accept_ra.read_text(), "1\n")
        for uplink in UPLINKS:
            with self.subTest(uplink=uplink):
                vm = self.boot_demo("--net", "nat", "--uplink", uplink, "--name", uplink)
                vm.wait_for_ipv6()
                self.wait_until(lambda: self.pings(vm, SERVICE6))
                self.assertEqual(self.get(vm, SERVICE6), f"you are {ADDRESS6}\n")
                self.assertEqual(self.get(vm, SERVICE), f"you are {ADDRESS}\n")
                self.assertIn(f"{OWN6} ", vm.sh(f"nslookup {uplink}.qvm")[0].replace("\n", " "))
                # The host hears its own routers as before.
                for setting in ("forwarding", "accept_ra"):
                    path = pathlib.Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/{setting}")
                    self.assertEqual(path.read_text(), {"forwarding": "0\n"}.get(setting, "1\n"))
                self.power_off(vm)

    def test_ipv6_without_a_way_out_is_no_default_route(self):
        vm = self.boot_demo("--net", "isolated")
        self.wait_until(lambda: self.pings(vm, GATEWAY6))
        self.assertNotIn("default", vm.sh("ip -6 route")[0])
        self.power_off(vm)

    # --- port security ----------------------------------------------------------------------------

    def test_a_guest_sends_as_itself(self):
        group = ("--group", "lab", "--net")
        vms = {"on": self.boot_demo(*group, "isolated", "--name", "honest"),
               "off": self.boot_demo(*group, "isolated,port-security=off", "--name", "router")}
        for security, vm in vms.items():
            vm.sh("ip addr add 192.168.26.99/24 dev eth0")
            pretended = {
                "IP": self.pings(vm, "192.168.26.1", "-I 192.168.26.99"),
                "ARP": vm.sh("arping -c 2 -w 3 -I eth0 -s 192.168.26.99 192.168.26.1")[1] == 0,
            }
            vm.sh("ip addr del 192.168.26.99/24 dev eth0")
            self.assertTrue(self.pings(vm, "192.168.26.1"))
            own6 = {"on": OWN6, "off": "fd71:766d:26::b"}[security]
            pretended["IPv6"] = self.pings_as(vm, "fd71:766d:26::99")
            self.assertTrue(self.pings_as(vm, own6))
            mac = vm.sh("cat /sys/class/net/eth0/address")[0].strip()
            set_mac = "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up"
            vm.sh(set_mac.format("52:54:00:99:99:99"))
            pretended["MAC"] = self.pings(vm, "192.168.26.1", "-w 5")
            vm.sh(set_mac.format(mac))
            self.wait_until(lambda: self.pings(vm, "192.168.26.1"))
            self.assertEqual(set(pretended.values()), {security == "off"}, pretended)
        for vm in vms.values():
            self.power_off(vm)

    # --- port isolation -----------------------------------------------------------------------------

    def test_port_isolation_keeps_guests_apart_whichever_way_they_try(self):
        group = ("--group", "lab", "--net", "nat")
        first = self.boot_demo(*group, "--port-isolation", "--name", "first")
        second = self.boot_demo(*group, "--name", "second")
        net = {vm["name"]: vm["net"] for vm in self.ps()}
        for vm, other in ((first, "second"), (second, "first")):
            address = net[other]["address"]
            self.assertTrue(self.pings(vm, "192.168.26.1"))
            self.assertEqual(self.get(vm, SERVICE), f"you are {ADDRESS}\n")
            self.assertFalse(self.pings(vm, address))
            vm.sh(f"ip route add {address}/32 via 192.168.26.1")
            self.assertFalse(self.pings(vm, address))
            if net[other]["host_address"]:
                self.assertFalse(self.pings(vm, net[other]["host_address"]))
        for vm in (first, second):
            self.power_off(vm)

    def test_port_isolation_is_the_first_members_to_ask_for(self):
        vm = self.boot_demo("--group", "lab", "--net", "isolated")
        self.assert_refused(self.qvm("run", "--group", "lab", "--port-isolation", self.demo),
                            "port isolation: the group's network has none")
        self.power_off(vm)

    # --- the host ---------------------------------------------------------------------------------

    def test_the_host_is_closed_unless_it_is_allowed(self):
        self.with_ipv6()
        port = self.serve_on_host()
        for uplink in UPLINKS:
            with self.subTest(uplink=uplink):
                closed = self.boot_demo("--net", "nat", "--uplink", uplink)
                self.assertEqual(self.get(closed, SERVICE), f"you are {ADDRESS}\n")
                closed.wait_for_ipv6()
                self.assertEqual(self.get(closed, SERVICE6), f"you are {ADDRESS6}\n")
                for address in (ADDRESS, ADDRESS6):
                    self.assertIn(REFUSED, self.get(closed, address, port))
                self.assertIn("bad address", self.get(closed, "host.qvm", port))
                # So is what somebody leads on from there, as Docker does with ports.
                if uplink == "veth":
                    self.publish_as_docker_does(8077, SERVICE, 80)
                    self.assertIn(REFUSED, self.get(closed, ADDRESS, 8077))
                # An address that the host gets later is closed, too.
                played_host.ip("address", "add", "203.0.113.77/32", "dev", "lo")
                self.wait_until(lambda: REFUSED in self.get(closed, "203.0.113.77", port))
                played_host.ip("address", "del", "203.0.113.77/32", "dev", "lo")
                self.power_off(closed)
                allowed = self.boot_demo("--net", "nat", "--uplink", uplink, "--allow-host")
                for address in (ADDRESS, "host.qvm"):
                    self.assertEqual(self.get(allowed, address, port), "the host\n")
                self.power_off(allowed)

    def test_the_control_socket_is_its_users_alone(self):
        vm = self.boot_demo("--net", "none", "--name", "mine")
        sockets = [path for path in self.host.run.rglob("*") if path.is_socket()]
        self.assertTrue(sockets)
        script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        for path in sockets:
            done = subprocess.run(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}",
                                   "--clear-groups", "python3", "-c", script, str(path)],
                                  capture_output=True, text=True, timeout=20)
            self.assertIn("Permission denied", done.stderr)
        self.power_off(vm)


if __name__ == "__main__":
    harness.main()
