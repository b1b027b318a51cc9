#!/usr/bin/env python3
"""fleet.py QVM DISK [ROUNDS]: many VMs at once, by the command line.

Until N VMs that were started together run (from the first exec), beside as many QEMUs alone; until
50 that are stopped together are gone from the host, and what that costs another VM's start at the
same moment. DISK is raw and only has to boot: nothing in the guest is waited for. Root; the host is
a namespace of this program's own."""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

INSIDE = "QVM_BENCH_INSIDE"
QUIET = ["run", "-q", "-d", "--net", "nat", "-m", "64M"]


def main():
    qvm, disk = (os.path.abspath(word) for word in sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    if not os.environ.get(INSIDE):
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child",
                              "--mount-proc", sys.executable, "-B", *sys.argv])
    directory = tempfile.mkdtemp()
    os.environ.update(QVM_RUN_DIR=f"{directory}/run", QVM_CACHE_DIR=f"{directory}/cache",
                      QVM_DATA_DIR=f"{directory}/data")
    subprocess.run("mount -t sysfs none /sys; ip link set lo up;"
                   "ip link add wan0 type veth peer name wan1; ip link set wan1 up;"
                   "ip addr add 203.0.113.2/24 dev wan0; ip link set wan0 up;"
                   "ip route add default via 203.0.113.1", shell=True, check=True)
    try:
        measure(qvm, disk, rounds)
    finally:
        shutil.rmtree(directory)


def measure(qvm, disk, rounds):
    start = [qvm, *QUIET, disk]
    running = {n: [] for n in (1, 8, 32)}
    bare = {n: [] for n in running}
    gone, alone, beside, bare_beside = [], [], [], []
    for _ in range(rounds):
        for size in running:
            bare[size].append(start_qemus(disk, size))
            time.sleep(1 + size * 0.05)
            running[size].append(start_all(start, size))
            kill_all(qvm)
            time.sleep(1 + size * 0.05)
        alone.append(start_all(start, 1))
        kill_all(qvm)
        time.sleep(1)
        start_all(start, 50)
        time.sleep(3)
        time_gone, time_beside = stop_beside_start(qvm, start)
        gone.append(time_gone)
        beside.append(time_beside)
        kill_all(qvm)
        time.sleep(4)
        bare_beside.append(kill_beside_start_of_qemu(disk))
        time.sleep(4)
    print(f"{rounds} rounds\n\n{'ms':<44} {'median':>9} {'least':>9} {'most':>9}")
    for size, values in running.items():
        show(f"{size} VMs run, from the first exec", values)
        show(f"{size} QEMUs alone run, from the first exec", bare[size])
    show("50 stopped at once: gone from the host", gone)
    show("one start, alone", alone)
    show("one start, while 50 are stopped", beside)
    show("one QEMU alone, while 50 QEMUs are killed", bare_beside)


def show(name, values):
    print(f"{name:<44} {statistics.median(values):>9.1f} {min(values):>9.1f} {max(values):>9.1f}")


def start_all(command, count):
    """ms until the last of `count` that were started together has said that its guest runs."""
    begin = time.monotonic()
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    if any(process.wait() != 0 for process in started):
        raise RuntimeError("a VM did not start")
    return (time.monotonic() - begin) * 1e3


class Qemus:
    """`count` QEMUs, with nothing around them; `ms` until the last has let its guest run."""

    def __init__(self, disk, count):
        command = ["qemu-system-x86_64", "-no-user-config", "-nodefaults",
                   "-machine", "q35,vmport=off", "-accel", "tcg", "-cpu", "max", "-m", "64M",
                   "-display", "none", "-S", "-serial", "null", "-qmp", "stdio",
                   "-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
        begin = time.monotonic()
        self.processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                          for _ in range(count)]
        for process in self.processes:
            process.stdin.write(b'{"execute":"qmp_capabilities"}{"execute":"cont"}\n')
            process.stdin.flush()
        for process in self.processes:
            while b'"RESUME"' not in process.stdout.readline():
                pass
        self.ms = (time.monotonic() - begin) * 1e3

    def kill(self):
        for process in self.processes:
            process.kill()

    def end(self):
        self.kill()
        for process in self.processes:
            process.communicate()


def start_qemus(disk, count):
    qemus = Qemus(disk, count)
    qemus.end()
    return qemus.ms


def kill_beside_start_of_qemu(disk):
    many = Qemus(disk, 50)
    time.sleep(3)
    many.kill()
    time.sleep(0.01)
    another = Qemus(disk, 1)
    many.end()
    another.end()
    return another.ms


def names(qvm):
    return subprocess.run([qvm, "ps", "-q"], capture_output=True, text=True, check=True) \
        .stdout.split()


def kill_all(qvm):
    if running := names(qvm):
        subprocess.run([qvm, "kill", *running], stdout=subprocess.DEVNULL, check=True)


def links():
    return [name for name in os.listdir("/sys/class/net") if name.startswith("qvm-")]


def stop_beside_start(qvm, start):
    """ms until nothing of those that run is left on the host, and ms of another's start that
    begins with the stop."""
    running, old = names(qvm), set(links())
    begin = time.monotonic()
    stop = subprocess.Popen([qvm, "kill", *running], stdout=subprocess.DEVNULL)
    time.sleep(0.01)
    another = subprocess.Popen(start, stdout=subprocess.DEVNULL)
    begin_another = time.monotonic()
    time_gone = time_beside = None
    run = pathlib.Path(os.environ["QVM_RUN_DIR"])
    while time_gone is None or time_beside is None:
        if time_beside is None and another.poll() is not None:
            time_beside = (time.monotonic() - begin_another) * 1e3
        if time_gone is None and not old & set(links()) and \
                not any((run / name).exists() for name in running):
            time_gone = (time.monotonic() - begin) * 1e3
        time.sleep(0.002)
    stop.wait()
    return time_gone, time_beside


if __name__ == "__main__":
    main()
