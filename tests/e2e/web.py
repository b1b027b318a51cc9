"""Web servers on loopback that images are pulled from: nginx, and one of our own for what nginx
never does."""

import http.server
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time

NGINX = """
daemon off; user root; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log {directory}/access.log; sendfile off; keepalive_timeout 0;
    client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
    server {{
        listen 127.0.0.1:{port}; listen 127.0.0.1:{secure} ssl;
        ssl_certificate {directory}/certificate; ssl_certificate_key {directory}/key;
        location /files/ {{ alias {files}/; }}
        location /no-ranges/ {{ alias {files}/; max_ranges 0; }}
        location /slow/ {{ alias {files}/; limit_rate 4m; }}
        location /moved/ {{ rewrite ^/moved/(.*) /files/$1 redirect; }}
        location /to-http/ {{ rewrite ^/to-http/(.*) http://127.0.0.1:{port}/files/$1 redirect; }}
        location /to-file/ {{ return 302 file://{files}/disk.raw; }}
        location /for-ever/ {{ return 302 /for-ever/again; }}
    }}
}}
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Nginx:
    """Serves a directory, by http and https; `log()` has a request a line."""

    def __init__(self, files):
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self.port, self.secure = free_port(), free_port()
        self.certificate = self.directory / "certificate"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                        "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
                        self.directory / "key", "-out", self.certificate], check=True, timeout=60,
                       stderr=subprocess.DEVNULL)
        config = self.directory / "config"
        config.write_text(NGINX.format(directory=self.directory, files=files, port=self.port, secure=self.secure))
        self.directory.chmod(0o755)
        self.process = subprocess.Popen(["nginx", "-c", config], stderr=subprocess.DEVNULL)
        self._wait_until(self._answers)
        self._wait_until(self._is_quiet)

    def _answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.secure)).close()
            return True
        except OSError:
            return False

    def _is_quiet(self):
        """It closes its end of a connection a moment later."""
        table = pathlib.Path("/proc/net/tcp").read_text()
        return not re.search(f"0100007F:{self.secure:04X} 0100007F:.... 0[18]", table)

    @staticmethod
    def _wait_until(condition):
        deadline = time.monotonic() + 20
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError("nginx does not start")
            time.sleep(0.02)

    def url(self, path, secure=False):
        return f"https://127.0.0.1:{self.secure}/{path}" if secure else f"http://127.0.0.1:{self.port}/{path}"

    def log(self):
        return (self.directory / "access.log").read_text().splitlines()

    def end(self):
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.directory)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        what, _, name = self.path.partition("?")[0].rpartition("/")
        path = pathlib.Path(self.server.files, name)
        data = path.read_bytes() if path.exists() else b""
        getattr(self, what.rpartition("/")[2].replace("-", "_"))(data)

    def answer(self, status, data, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def cut(self, data):
        """A quarter of the file at a time, and the rest on request."""
        begin = self.begin()
        rest, part = data[begin:], data[begin:begin + len(data) // 4]
        self.answer(206 if begin else 200, part, len(rest), ETag=self.server.etag,
                    Content_Range=f"bytes {begin}-{len(data) - 1}/{len(data)}")

    def cut_at_once(self, data):
        """Never more than half of it, from the beginning."""
        self.answer(200, data[:len(data) // 2], len(data))

    def too_long(self, data):
        """More was promised than there is; who asks for the rest is told so."""
        if self.begin() >= len(data):
            self.answer(416, b"", ETag=self.server.etag, Content_Range=f"bytes */{len(data)}")
        else:
            self.answer(200, data, len(data) + 1000, ETag=self.server.etag)

    def too_short(self, data):
        """Less was promised than there is."""
        self.answer(200, data, len(data) - 512)

    def no_length(self, data):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def unmeasured(self, data):
        """Nobody says how much comes; it can go on."""
        begin = self.begin()
        self.send_response(206 if begin else 200)
        self.send_header("ETag", self.server.etag)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/*")
        self.end_headers()
        self.wfile.write(data[begin:])

    def endless(self, data):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(data)

    def elsewhere(self, _):
        """By another name of this host, so that it is another host."""
        self.answer(302, b"", Location=f"http://localhost:{self.server.server_address[1]}/files/disk.raw")

    def other_part(self, data):
        """Another part than the one that was asked for."""
        if self.begin():
            self.answer(206, data[1:], Content_Range=f"bytes 1-{len(data) - 1}/{len(data)}")
        else:
            self.answer(200, data)

    def busy(self, data):
        """Not at first."""
        self.answer(*((503, b"") if len(self.server.requests) < 3 else (200, data)))

    def files(self, data):
        """For a proxy's client, too."""
        self.answer(200, data)

    def begin(self):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") == self.server.etag
        return int(wanted.group(1)) if wanted and same else 0


class Strange(http.server.ThreadingHTTPServer):
    """Serves a directory as its handler's functions say: /cut/NAME, /too-long/NAME, ..."""

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.etag = files, [], '"first"'
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that was killed

    def url(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def end(self):
        self.shutdown()
        self.server_close()
