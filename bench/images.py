#!/usr/bin/env python3
"""images.py QVM DEMO [ROUNDS [MIB]]: an image into the store, and what a first run of it costs,
beside cp, qemu-img convert and qemu-img create -b; a pull beside curl; names beside paths. Both
sides in turns, on a disk of MIB MiB and a sparse one; what is written is on disk when the clock
stops. As root."""

import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from vms import on_own_host, show, show_head, since

ROUNDS = 9
SIZE = 512  # MiB
PLANS = 10  # a round


def run(*words):
    subprocess.run([str(word) for word in words], check=True, timeout=600, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)


def timed(*words):
    begin = time.monotonic()
    run(*words)
    return since(begin)


class Series:
    def __init__(self):
        self.values = {}

    def take(self, name, ms):
        self.values.setdefault(name, []).append(ms)

    def show(self, title):
        print(f"\n{title}")
        show_head("  ratio")
        first = next(iter(self.values.values()))
        for name, values in self.values.items():
            show(name, values, first)


class Bench:
    def __init__(self, qvm, directory, size, rounds):
        self.qvm, self.directory, self.rounds = qvm, directory, rounds
        self.copy = directory / "copy"
        self.full, self.sparse = directory / "full.raw", directory / "sparse.raw"
        with open(self.full, "wb") as file:
            for i in range(size):
                file.write(random.Random(i).randbytes(1 << 20))
            file.seek(510)
            file.write(b"\x55\xaa")  # it boots, for all that is looked at
        shutil.copyfile(self.full, self.sparse)
        os.truncate(self.sparse, 10 * size << 20)

    def make_copy(self, command):
        """ms of a shell command that makes one, until that is on disk."""
        took = timed("sh", "-c", f"{command} && sync {self.copy}")
        self.copy.unlink()
        return took

    def imports(self, kind, disk):
        series = Series()
        cp = f"cp --sparse=always {disk} {self.copy}"
        for _ in range(self.rounds):
            series.take("qvm image import", timed(self.qvm, "image", "import", disk, "bench"))
            run(self.qvm, "image", "rm", "bench")
            series.take("cp", self.make_copy(cp))
            series.take("sha256sum, and cp", self.make_copy(f"sha256sum {disk} && {cp}"))
            series.take("qemu-img convert -O qcow2", self.make_copy(f"qemu-img convert -O qcow2 {disk} {self.copy}"))
        series.show(f"an image of one's own, of {kind}")

    def first_runs(self):
        """A plan is printed when all has been checked, and QEMU would start."""
        run(self.qvm, "image", "import", self.full, "bench")
        plan = [self.qvm, "run", "-q", "--dry-run", "--net", "none"]
        series = Series()
        for _ in range(self.rounds * PLANS):
            series.take("qvm run --dry-run NAME", timed(*plan, "bench"))
            series.take("qvm run --dry-run PATH", timed(*plan, self.full))
            series.take("qemu-img create -b", timed("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b",
                                                    self.full, self.copy))
            self.copy.unlink()
        series.show("a throw-away disk over it")
        series = Series()
        for _ in range(self.rounds):
            series.take("qvm create NAME", timed(self.qvm, "create", "--net", "none", "--name", "own", "bench"))
            run(self.qvm, "rm", "own")
            series.take("cp", self.make_copy(f"cp {self.full} {self.copy}"))
        series.show("a disk that stays")
        run(self.qvm, "image", "rm", "bench")

    def pulls(self):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        config = self.directory / "nginx"
        config.write_text(f"daemon off; user root; pid {self.directory}/pid; error_log /dev/null; events {{}}\n"
                          f"http {{ access_log off; sendfile on;\n"
                          f"    server {{ listen 127.0.0.1:{port}; root {self.directory}; }} }}\n")
        with open(self.full, "rb") as file:
            checksum = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        url = f"http://127.0.0.1:{port}/{self.full.name}"
        server = subprocess.Popen(["nginx", "-c", config], stderr=subprocess.DEVNULL)
        try:
            time.sleep(1)
            series = Series()
            for _ in range(self.rounds):
                series.take("qvm image pull --checksum",
                            timed(self.qvm, "image", "pull", "-q", "--checksum", checksum, url, "bench"))
                run(self.qvm, "image", "rm", "bench")
                series.take("curl", self.make_copy(f"curl -s {url} -o {self.copy}"))
                series.take("curl, and sha256sum", self.make_copy(f"curl -s {url} -o {self.copy} && sha256sum {self.copy}"))
            series.show("from a server on loopback")
        finally:
            server.terminate()
            server.wait()


def measure(qvm, _, rounds=ROUNDS):
    size = int(sys.argv[4]) if len(sys.argv) > 4 else SIZE
    print(f"{rounds} rounds, {size} MiB")
    # On the file system of the store.
    with tempfile.TemporaryDirectory(dir=pathlib.Path(os.environ["QVM_DATA_DIR"]).parent) as directory:
        bench = Bench(qvm, pathlib.Path(directory), size, rounds)
        bench.imports(f"{size} MiB", bench.full)
        bench.imports(f"as much in a sparse file of {10 * size} MiB", bench.sparse)
        bench.first_runs()
        bench.pulls()


on_own_host(measure)
