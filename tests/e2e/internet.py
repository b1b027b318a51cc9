"""The internet, as a process in a network namespace of its own. TCP port 80 tells each client the
address that it is seen with, and of /taken how much port 9 has taken; port 9 takes whatever comes
(RFC 863); port 37 says a line every 50 ms for ever."""

import socket
import socketserver
import sys
import threading
import time

taken = 0


class TellAddress(socketserver.StreamRequestHandler):
    timeout = 10

    def handle(self):
        path = (self.rfile.readline().split() + [b"", b""])[1]
        while self.rfile.readline().strip():  # the request's headers
            pass
        seen = self.client_address[0].removeprefix("::ffff:")  # an IPv4 address
        body = f"{taken}\n" if path == b"/taken" else f"you are {seen}\n"
        self.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


class Take(socketserver.BaseRequestHandler):
    def handle(self):
        global taken
        while data := self.request.recv(65536):
            taken += len(data)


class Tick(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            for number in range(20 * 600):
                self.request.sendall(b"tick %d\n" % number)
                time.sleep(0.05)
        except OSError:
            pass  # the client has left


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    servers = [Server(("::", port), handler)
               for port, handler in ((80, TellAddress), (9, Take), (37, Tick))]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdout.close()
    servers[0].serve_forever()
