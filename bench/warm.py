#!/usr/bin/env python3
"""warm.py QVM DEMO [ROUNDS [DEBIAN]]: warm starts and forks beside cold boots, and beside what QEMU
has for it (savevm and loadvm, migration of all memory to a file), both sides in turns. As root; the
guests have no network outside."""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from vms import on_own_host, show, show_head, since

QVM = ""
ROUNDS = 8
COLD_ROUNDS = {"demo": 4, "debian": 2}  # of a boot that takes 40 s
SHORT = 120  # s


def qvm(*words, **more):
    done = subprocess.run([QVM, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=600, **more)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def until_output(*words):
    """ms from exec of qvm to the first byte that it prints."""
    begin = time.monotonic()
    with subprocess.Popen([QVM, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as started:
        first = started.stdout.read(1)
        took = since(begin)
        started.stdout.read()
    assert first, words
    return took


def pss_of(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) / 1024


def states(*names):
    return json.loads(qvm("inspect", *names))


def wait_for_agents(names):
    deadline = time.monotonic() + SHORT
    while not all(each["agent"] for each in states(*names)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def starts(image, kind, rounds):
    wait = ("--wait-for", "cloud-init") if kind == "debian" else ("--wait-for", "agent")
    qvm("run", "-q", "-d", "--net", "isolated", "--name", "base", *wait, image)
    time.sleep(2)
    qvm("snapshot", "create", "-q", "base", "bench")
    cold, warm, fork = [], [], []
    for i in range(rounds):
        if i < COLD_ROUNDS[kind]:
            cold.append(until_output("run", "-q", "--net", "isolated", image, "--", "echo", "x"))
        warm.append(until_output("run", "-q", "snapshot:bench", "--", "echo", "x"))
        begin = time.monotonic()
        qvm("fork", "-q", "--name", "copy", "base")
        forked = since(begin)
        fork.append(forked + until_output("exec", "copy", "echo", "x"))
        qvm("kill", "copy")
    print(f"\n{kind}: from exec of qvm to the first byte of a command's output")
    show_head("  ratio")
    show("warm: run snapshot:NAME -- echo", warm, warm)
    show("fork, and exec in the copy", fork, warm)
    show(f"cold: run IMAGE -- echo ({len(cold)} rounds)", cold, warm)


def clones(kind):
    print(f"\n{kind}: copies by one `qvm fork`      all ready, ms     PSS of each, MiB")
    for count in (1, 4, 8, 16):
        begin = time.monotonic()
        names = qvm("fork", "-q", "-n", count, "--name", "copy", "base").split()
        wait_for_agents(names)
        took = since(begin)
        sizes = [pss_of(each["qemu_pid"]) for each in states(*names)]
        print(f"{count:>26}{took:>21.0f}{statistics.mean(sizes):>21.1f}", flush=True)
        qvm("kill", *names)
    qvm("kill", "base")
    qvm("snapshot", "rm", "bench")


def pauses(image):
    print("\nmemory of the VM, touched MiB     snapshot create, ms     of that the guest stood still, ms")
    for memory, touched in ((256, 0), (1024, 0), (4096, 0), (4096, 500), (4096, 2000)):
        qvm("run", "-q", "-d", "--net", "none", "-m", f"{memory}M", "--name", "base", "--wait-for", "agent", image)
        if touched:
            qvm("exec", "base", "sh", "-c", f"mount -t tmpfs -o size={touched + 9}M tmpfs /mnt && "
                f"dd if=/dev/urandom of=/mnt/x bs=1M count={touched} 2>/dev/null")
        takes, stood = [], []
        for _ in range(3):
            begin = time.monotonic()
            done = subprocess.run([QVM, "snapshot", "create", "base", "bench"], capture_output=True, text=True,
                                  check=True, timeout=SHORT)
            takes.append(since(begin))
            stood.append(int(done.stderr.split(" for ")[1].split()[0]))
            used = json.loads(qvm("snapshot", "inspect", "bench"))[0]["disk_usage"] >> 20
            qvm("snapshot", "rm", "bench")
        print(f"{memory:>6} MiB, {used:>5} on disk{statistics.median(takes):>22.0f}{statistics.median(stood):>30.0f}",
              flush=True)
        qvm("kill", "base")


class Qemu:
    """QEMU alone, with the same machine."""

    def __init__(self, files, disk, *more):
        self.path = f"{files}/qmp"
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024M",
             "-display", "none", "-serial", f"file:{files}/serial", "-drive", f"file={disk},if=virtio",
             "-device", "virtio-rng-pci", "-qmp", f"unix:{self.path},server=on,wait=off", *more])
        while True:
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(self.path)
                break
            except OSError:
                time.sleep(0.001)
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "return" in answer or "error" in answer:
                assert "return" in answer, answer
                return answer["return"]

    def monitor(self, text):
        said = self("human-monitor-command", **{"command-line": text})
        assert not said.strip(), said

    def until(self, condition):
        deadline = time.monotonic() + SHORT
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return since(self.begin)

    def runs(self):
        return self.until(lambda: self("query-status")["running"])

    def end(self):
        self.lines.close()
        self.socket.close()
        self.process.kill()
        self.process.wait()
        os.unlink(self.path)


def qemus_own(image, rounds, files):
    disk, state = f"{files}/disk.qcow2", f"{files}/state"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", disk], check=True)
    qemu = Qemu(files, disk)
    qemu.until(lambda: "demo#" in pathlib.Path(f"{files}/serial").read_text(errors="replace"))
    saves, migrations = [], []
    for _ in range(3):
        begin = time.monotonic()
        qemu.monitor("savevm bench")
        saves.append(since(begin))
        qemu("stop")
        begin = time.monotonic()
        qemu("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        qemu("migrate", uri=f"exec:cat >{state}")
        qemu.begin = begin
        migrations.append(qemu.until(lambda: qemu("query-migrate").get("status") == "completed"))
        qemu("cont")
    qemu.end()
    qvm("run", "-q", "-d", "--net", "none", "--name", "base", "--wait-for", "agent", image)
    time.sleep(2)
    pauses_of_qvm = []
    for _ in range(3):
        done = subprocess.run([QVM, "snapshot", "create", "base", "bench"], capture_output=True, text=True, check=True)
        pauses_of_qvm.append(int(done.stderr.split(" for ")[1].split()[0]))
        if len(pauses_of_qvm) < 3:
            qvm("snapshot", "rm", "bench")
    loads, incoming, warm = [], [], []
    for _ in range(rounds):
        qemu = Qemu(files, disk, "-loadvm", "bench")
        loads.append(qemu.runs())
        qemu.end()
        qemu = Qemu(files, disk, "-incoming", f"exec:cat {state}")
        incoming.append(qemu.until(lambda: qemu("query-status")["status"] != "inmigrate"))
        qemu.end()
        timings = f"{files}/timings"
        qvm("run", "-q", "-d", f"--timings={timings}", "--name", "copy", "snapshot:bench")
        phases = json.loads(pathlib.Path(timings).read_text())["phases"]
        warm.append(next(each["start_ms"] + each["ms"] for each in phases if each["name"] == "running"))
        qvm("kill", "copy")
    print("\ndemo, 1 GiB: to save it, while the guest stands still")
    show_head("  ratio")
    show("qvm snapshot create", pauses_of_qvm, pauses_of_qvm)
    show("QEMU: savevm", saves, pauses_of_qvm)
    show("QEMU: stop, migrate all memory to a file", migrations, pauses_of_qvm)
    print("\ndemo, 1 GiB: from exec to running CPUs of the saved machine")
    show_head("  ratio")
    show("qvm run snapshot:NAME", warm, warm)
    show("QEMU: -loadvm", loads, warm)
    show("QEMU: -incoming, all memory", incoming, warm)
    qvm("kill", "base")
    qvm("snapshot", "rm", "bench")


def measure(program, demo, rounds=ROUNDS):
    global QVM
    QVM = program
    print(f"{rounds} rounds")
    images = {"demo": demo}
    if len(sys.argv) > 4:
        images["debian"] = os.path.abspath(sys.argv[4])
    for kind, image in images.items():
        starts(image, kind, rounds)
        clones(kind)
    with tempfile.TemporaryDirectory() as files:
        qemus_own(demo, rounds, files)
    pauses(demo)


on_own_host(measure)
