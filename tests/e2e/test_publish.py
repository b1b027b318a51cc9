"""Published ports: from the host into each kind of network, and what becomes of them."""

import base64
import hashlib
import re
import socket
import struct
import threading
import time

import detached
import harness
import picture
import played_host

ECHO = 7  # the guest's port
HASH = 81  # of all that came, once the client has said that it is all
LOCAL = "127.0.0.1"
MANY = 500  # connections
SEVERAL = tuple(dict.fromkeys((*harness.NETS, "user")))

# A program for the guest, whose busybox can neither UDP nor a queue of connections. It forks; one
# of the two is a UDP echo server at port 7, and the other accepts TCP connections there and forks
# for each one that does read() and write().
ECHO_CODE = bytes.fromhex(
    "6a39580f0531ed85c0400f94c5"  # ebp = fork() == 0
    "6a025f6a015e01ee31d26a29580f0593"  # ebx = socket(AF_INET, SOCK_STREAM + ebp, 0)
    "5252c704240200000789df4889e66a105a6a31580f05"  # bind(ebx, {AF_INET, 7, 0.0.0.0})
    "85ed0f8584000000"  # if (ebp) goto udp
    "89dfbe000400006a32580f05"  # listen(ebx, 1024)
    "89df31f631d26a2b580f0585c078f14194"  # accept: r12 = accept(ebx)
    "6a39580f0585c0741e"  # if (fork() == 0) goto tcp
    "4489e76a03580f05"  # close(r12)
    "6aff5f31f66a015a4531d26a3d580f0585c07fecebc8"  # while (wait4(-1, WNOHANG) > 0); goto accept
    "bd000001004829ec"  # tcp: 64 KiB on the stack
    "4489e74889e689ea31c00f0585c07e21"  # read, or exit
    "4989e541964489e74c89ee4489f26a01580f0585c07e0a4901c54129c675e6ebcf"  # write all of it, tcp
    "6a3c5831ff0f05"  # exit(0)
    "bd000001004829ec4c8d242c"  # udp: 64 KiB on the stack, the address after them
    "6a104989e14d89e04531d289ea488d74240889df6a2d580f05"  # recvfrom
    "415989c26a1041596a2c584889e60f05ebd5")  # sendto, udp


def program(code):
    """`code` as a program that x86-64 Linux runs: elf(5), with one segment."""
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1,
                                 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def receive_all(connection):
    data = bytearray()
    while got := connection.recv(65536):
        data += got
    return bytes(data)


def free_port():
    with socket.create_server((LOCAL, 0)) as server:
        return server.getsockname()[1]


class Publish(detached.Test):
    # --- servers --------------------------------------------------------------------------------

    def start_serving(self, *options):
        guest = self.start_detached(*options, *self.boot_files())
        self.serve(guest)
        return guest

    def serve(self, guest):
        text = base64.b64encode(program(ECHO_CODE)).decode()
        said = guest.sh(f"echo {text} | base64 -d >/tmp/echo; chmod +x /tmp/echo; /tmp/echo & "
                        f"nc -ll -p {HASH} -e sha256sum & "
                        f"until netstat -ltn | grep -q ':{ECHO} ' && netstat -ltn | "
                        f"grep -q ':{HASH} '; do sleep 0.1; done")
        self.assertEqual(said[1], 0, said)

    def port(self, guest, number, protocol="tcp"):
        """The host's port for one of the guest's."""
        found = [port["host_port"] for port in guest.inspect()["ports"]
                 if (port["guest_port"], port["protocol"]) == (number, protocol)]
        self.assertEqual(len(found), 1)
        self.assertGreater(found[0], 0)
        return found[0]

    def assert_echo(self, port, address=LOCAL):
        with socket.create_connection((address, port), 20) as connection:
            connection.sendall(b"over and over")
            connection.shutdown(socket.SHUT_WR)
            self.assertEqual(receive_all(connection), b"over and over")

    def assert_udp_echo(self, port, address=LOCAL, size=1400):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.connect((address, port))
            for data in (b"once", b"x" * size):
                client.send(data)
                self.assertEqual(client.recv(65536), data)

    def assert_refused_by_guest(self, port):
        """A port where nobody listens is closed at once."""
        start = time.monotonic()
        try:  # the reset may come as early as connect's own answer
            with socket.create_connection((LOCAL, port), 20) as connection:
                self.assertEqual(connection.recv(1), b"")
        except ConnectionResetError:
            pass
        self.assertLess(time.monotonic() - start, 5)

    def assert_all_ways(self, guest):
        with self.subTest("TCP"):
            self.assert_echo(self.port(guest, ECHO))
        with self.subTest("UDP"):
            self.assert_udp_echo(self.port(guest, ECHO, "udp"))
        with self.subTest("half-closed"):
            data = bytes(range(256)) * 1024
            with socket.create_connection((LOCAL, self.port(guest, HASH)), 20) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                self.assertEqual(receive_all(connection).split()[0].decode(),
                                 hashlib.sha256(data).hexdigest())
        with self.subTest("nobody listens"):
            self.assert_refused_by_guest(self.port(guest, 99))

    # --- the kinds of network -------------------------------------------------------------------

    def test_each_kind_of_network(self):
        """Port 0, and which it became is told."""
        guests = self.start_together(*(
            ("--name", net, "--net", net, "-p", f"0:{ECHO}", "-p", f"0:{ECHO}/udp",
             "-p", f"0:{HASH}", "-p", "0:99", *self.boot_files()) for net in SEVERAL))
        table = {line.split()[0]: line for line in self.qvm("ps").stdout.splitlines()}
        listed = {vm["name"]: vm["ports"] for vm in self.ps()}
        for guest in guests:
            with self.subTest(net=guest.name):
                self.assertEqual(listed[guest.name], guest.inspect()["ports"])
                for protocol, text in (("tcp", ""), ("udp", "/udp")):
                    self.assertIn(f"{LOCAL}:{self.port(guest, ECHO, protocol)}->{ECHO}{text}",
                                  table[guest.name])
                self.serve(guest)
                self.assert_all_ways(guest)
        ports = {guest.name: self.port(guest, ECHO) for guest in guests}
        self.assertEqual(len(set(ports.values())), len(guests))
        for guest in guests:
            self.end(guest)
            socket.create_server((LOCAL, ports[guest.name])).close()
        self.assert_nothing_left()

    def test_group(self):
        guests = self.start_together(*(
            ("--name", name, "--group", "lab", "-p", f"0:{ECHO}", "-p", f"0:{ECHO}/udp",
             *self.boot_files()) for name in ("ann", "bob")))
        for guest in guests:
            self.serve(guest)
            self.assert_echo(self.port(guest, ECHO))
        # Its own namespace would be gone now.
        leader = min(guests, key=lambda guest: guest.address)
        rest, = [guest for guest in guests if guest is not leader]
        leader.kill()
        self.assert_echo(self.port(rest, ECHO))
        self.assert_udp_echo(self.port(rest, ECHO, "udp"))
        self.end(rest)
        self.assert_nothing_left()

    # --- much at once ---------------------------------------------------------------------------

    def test_much(self):
        port = free_port()
        guest = self.start_serving("--name", "box", "--net", "nat", "-p", f"0.0.0.0:{port}:{ECHO}",
                                   "-p", f"[::1]:{port}:{ECHO}", "-p", f"[::1]:{port}:{ECHO}/udp")
        with self.subTest("addresses"):
            self.assert_echo(port)
            self.assert_echo(port, played_host.ADDRESS)
            self.assert_echo(port, "::1")
            self.assert_udp_echo(port, "::1")
            table = self.qvm("ps").stdout
            self.assertIn(f"0.0.0.0:{port}->{ECHO}", table)
            self.assertIn(f"[::1]:{port}->{ECHO}/udp", table)
        with self.subTest("8 MiB"):
            self._echo_of_8_mib(port)
        with self.subTest(f"{MANY} connections"):
            self._many_connections(port)
            self._many_connections(port)
        with self.subTest("restart"):
            done = self.qvm("restart", "-t", "0", "box", seconds=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            guest.wait_for_prompt()
            self.serve(guest)
            self.assert_echo(port)
            self.assert_udp_echo(port, "::1")
        with self.subTest("the port of a VM that ended"):
            client = socket.create_connection((LOCAL, port), 20)
            self.addCleanup(client.close)
            self.end(guest)
            socket.create_server(("0.0.0.0", port)).close()
            with self.assertRaises(ConnectionResetError):
                client.recv(1)
        self.assert_nothing_left()

    def _echo_of_8_mib(self, port):
        data = b"".join(hashlib.sha256(struct.pack("<I", i)).digest() for i in range(262144))
        with socket.create_connection((LOCAL, port), 60) as connection:
            def send():
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            sender = threading.Thread(target=send)
            sender.start()
            came = receive_all(connection)
            sender.join()
        self.assertEqual(len(came), len(data))
        self.assertEqual(hashlib.sha256(came).digest(), hashlib.sha256(data).digest())

    def _many_connections(self, port):
        connections = [socket.create_connection((LOCAL, port), 60) for _ in range(MANY)]
        try:
            for i, connection in enumerate(connections):
                connection.sendall(b"%06d" % i)
            for i, connection in enumerate(connections):
                self.assertEqual(connection.recv(6, socket.MSG_WAITALL), b"%06d" % i)
        finally:
            for connection in connections:
                connection.close()

    # --- what is refused ------------------------------------------------------------------------

    def assert_refused_beforehand(self, why, *options):
        before = picture.Picture(self.host)
        done = self.run_detached("--name", "refused", *options, self.hang)
        self.assert_refused(done, why)
        self.assertEqual(before.diff(picture.Picture(self.host)), "")

    def test_port_in_use(self):
        with socket.create_server((LOCAL, 0)) as server:
            port = server.getsockname()[1]
            for net in (*SEVERAL, "nat,mtu=1400"):
                with self.subTest(net=net):
                    self.assert_refused_beforehand(
                        rf"publish.*{re.escape(LOCAL)}:{port}/tcp: Address already in use",
                        "--net", net, "-p", f"{port}:80")
            self.assert_refused_beforehand(rf"publish.*0\.0\.0\.0:{port}/tcp: Address already",
                                           "-p", f"0.0.0.0:{port}:80")
            self.assert_refused_beforehand(rf"publish.*:{port}/tcp: Address already", "--group",
                                           "lab", "-p", f"{port}:80")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((LOCAL, 0))
            port = server.getsockname()[1]
            for net in SEVERAL:
                with self.subTest(net=net, protocol="udp"):
                    self.assert_refused_beforehand(
                        rf"publish.*{re.escape(LOCAL)}:{port}/udp: Address already in use",
                        "--net", net, "-p", f"{port}:80/udp")

    def test_what_cannot_be_published(self):
        port = free_port()
        self.assert_refused_beforehand("none", "--net", "none", "-p", f"{port}:80")
        self.assert_refused_beforehand("IPv4 only", "--net", "user", "-p", f"[::1]:{port}:80")
        self.assert_refused_beforehand("192.0.2.1:.*Cannot assign", "-p", f"192.0.2.1:{port}:80")
        self.assert_refused_beforehand("publish", "-p", f"{port}:80", "-p", f"{port}:81")

    def test_two_vms_and_one_port(self):
        port = free_port()
        for net in ("isolated", "user"):
            with self.subTest(net=net):
                first = self.start("-q", "--name", "first", "--net", net, "-p", f"{port}:80",
                                   self.hang)
                first.out.expect(harness.STARTED, 60)
                for other in ("isolated", "user"):
                    self.assert_refused_beforehand(f":{port}/tcp: Address already in use",
                                                   "--net", other, "-p", f"{port}:80")
                self.assertEqual(self.qvm("stop", "-t", "0", "first").returncode, 0)
                socket.create_server((LOCAL, port)).close()
                first.wait()


if __name__ == "__main__":
    harness.main()
