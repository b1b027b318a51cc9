#!/usr/bin/env python3
"""uplinks.py QVM DISK [ROUNDS]: TCP throughput and round trips of a guest over each uplink.

veth and pasta of `--net nat`, QEMU's user networking (slirp), and a plain bridge of the host's; then the
uplinks alone, from a program in the VM's namespace, since an emulated guest hides what they cost. The
other end is a server in a namespace behind the host's uplink. DISK is the demo disk. Root, passt."""

import re
import socket
import subprocess
import sys
import threading
import time

from vms import on_own_host, show, show_head

ROUNDS = 5
MIB = 1 << 20
OF_GUEST = 16  # MiB: one takes some 100 MiB/s without KVM
OF_HOST = 64
ECHOES = 200
DOWN, UP, ECHO = 7001, 7002, 7003  # the server's ports
OUTSIDE, LAN = "203.0.113.1", "198.51.100.1"  # its addresses: behind the uplink, and on the bridge


# --- the server: what it is asked for, and how long that took as it sees it -----------------------

def serve(port, handle):
    listener = socket.create_server(("", port))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            try:
                handle(connection)
            except ConnectionError:
                pass


def send(connection):
    """As many MiB as the path of a HTTP request says, until the client has closed; prints the
    MiB/s. (Who closes its sending side first meets a defect of Debian 12's pasta.)"""
    request = connection.makefile()
    size = int(request.readline().split("/")[1].split()[0]) * MIB
    while request.readline().strip():
        pass
    begin = time.monotonic()
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass
    print(f"{size / MIB / (time.monotonic() - begin)}", flush=True)


def take(connection):
    """Until the client closes; prints the MiB/s."""
    size = len(connection.recv(65536))
    begin = time.monotonic()
    while data := connection.recv(MIB):
        size += len(data)
    print(f"{size / MIB / (time.monotonic() - begin)}", flush=True)


def echo(connection):
    while data := connection.recv(4096):
        connection.sendall(data)


def server():
    for port, handle in ((DOWN, send), (UP, take), (ECHO, echo)):
        threading.Thread(target=serve, args=(port, handle), daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()  # until the benchmark ends


# --- a client without a guest ------------------------------------------------------------------------

def client(what, address):
    connection = socket.create_connection((address, {"down": DOWN, "up": UP, "echo": ECHO}[what]))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if what == "down":
        connection.sendall(b"GET /%d HTTP/1.0\r\n\r\n" % OF_HOST)
        while connection.recv(MIB):
            pass
    elif what == "up":
        connection.sendall(bytes(OF_HOST * MIB))
    else:
        begin = time.monotonic()
        for _ in range(ECHOES):
            connection.sendall(b"x")
            connection.recv(1)
        print(f"{(time.monotonic() - begin) / ECHOES * 1e6}")


# --- the benchmark -------------------------------------------------------------------------------------

class Internet:
    """The server's namespace, on the other end of the host's uplink and as a port of br0."""

    def __init__(self):
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-B", __file__, "server"], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n"
        script = f"""ip link set wan1 netns {self.process.pid}
            ip link add lan0 type veth peer name lan1 netns {self.process.pid}
            ip link add br0 type bridge; ip link set lan0 master br0 up; ip link set br0 up
            sysctl -qw net.ipv4.ping_group_range='0 2147483647'
            nsenter --net=/proc/{self.process.pid}/ns/net sh -ec '
                ip link set lo up; ip address add {OUTSIDE}/24 dev wan1; ip link set wan1 up
                ip address add {LAN}/24 dev lan1; ip link set lan1 up'"""
        subprocess.run(["sh", "-ec", script], check=True, timeout=20)

    def speed(self):
        """MiB/s of the transfer that has just been."""
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def transfer(internet, command):
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return internet.speed()


def round_trip_us(command):
    out = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout
    times = sorted(float(each) for each in re.findall(r"time=([\d.]+) ms", out))
    return times[len(times) // 2] * 1e3 if times else float(out)


def ways_of(qvm, disk):
    """Name, and what goes before a shell command in the guest or a program in its namespace; the
    server's address from there."""
    guests, programs = {}, {"from the host itself": ([], OUTSIDE)}
    for name, options in {"veth": ["--net", "nat", "--uplink", "veth"],
                          "pasta": ["--net", "nat", "--uplink", "pasta"],
                          "slirp": ["--net", "user"],
                          "bridge": ["--net", "bridge=br0"]}.items():
        subprocess.run([qvm, "run", "-q", "-d", "-m", "96M", "--name", name, "--wait-for", "agent",
                        *options, disk], check=True, timeout=120, stdout=subprocess.DEVNULL)
        guests[name] = ([qvm, "exec", name, "--", "sh", "-c"], LAN if name == "bridge" else OUTSIDE)
        if name in ("veth", "pasta"):
            programs[f"from {name}'s namespace"] = ([qvm, "net", "exec", name, "--"], OUTSIDE)
    subprocess.run([*guests["bridge"][0], "ip address add 198.51.100.10/24 dev eth0"], check=True,
                   timeout=60)
    return guests, programs


def measure(qvm, disk, rounds=ROUNDS):
    internet = Internet()
    guests, programs = ways_of(qvm, disk)
    tables = {"MiB/s, to": {}, "MiB/s, from": {}, "us, round trip": {}}
    down, up, trip = tables.values()

    def note(table, name, value):
        table.setdefault(name, []).append(value)

    try:
        for _ in range(rounds):
            for name, (run, address) in guests.items():
                note(down, f"guest by {name}", transfer(internet, [
                    *run, f"wget -q -O /dev/null http://{address}:{DOWN}/{OF_GUEST}"]))
                note(up, f"guest by {name}", transfer(internet, [
                    *run, f"head -c {OF_GUEST * MIB} /dev/zero | nc {address} {UP}"]))
                note(trip, f"guest by {name}", round_trip_us([*run, f"ping -c 5 {address}"]))
            for name, (run, address) in programs.items():
                words = [*run, sys.executable, "-B", __file__]
                note(down, name, transfer(internet, [*words, "down", address]))
                try:
                    note(up, name, transfer(internet, [*words, "up", address]))
                except subprocess.CalledProcessError:
                    print(f"{name}: the connection was reset while it sent", file=sys.stderr)
                note(trip, name, round_trip_us([*words, "echo", address]))
    finally:
        subprocess.run([qvm, "kill", *guests], check=True, timeout=60, stdout=subprocess.DEVNULL)
        internet.end()
    print(f"{rounds} rounds")
    for title, table in tables.items():
        print()
        show_head("  ratio", unit=title)
        for name, values in table.items():
            show(name, values, table["guest by veth" if "guest" in name else "from the host itself"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["server"]:
        server()
    elif sys.argv[1:2] in (["down"], ["up"], ["echo"]):
        client(*sys.argv[1:3])
    else:
        on_own_host(measure)
