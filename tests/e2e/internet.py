"""The internet, as a process in a network namespace of its own: TCP port 80 tells each client the
address that it is seen with."""

import socketserver
import sys


class TellAddress(socketserver.StreamRequestHandler):
    timeout = 10

    def handle(self):
        while self.rfile.readline().strip():  # the request and its headers
            pass
        body = f"you are {self.client_address[0]}\n"
        self.wfile.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("0.0.0.0", 80), TellAddress) as server:
        print("ready", flush=True)
        sys.stdout.close()
        server.serve_forever()
