#!/usr/bin/env python3
"""fleet.py QVM DISK [ROUNDS]: many VMs at once, by the command line.

Until N VMs that were started together run (from the first exec), beside as many QEMUs alone; until
50 that are stopped together are gone from the host, and what that costs another VM's start at the
same moment. DISK is raw and only has to boot: nothing in the guest is waited for. Root; the host is
a namespace of this program's own."""

import os
import pathlib
import subprocess
import time

from vms import (QUIET, kill_all, links, names, on_own_host, settle, show, show_head, since,
                 start_all)


def measure(qvm, disk, rounds=5):
    start = [qvm, *QUIET, disk]
    running = {n: [] for n in (1, 8, 32)}
    bare = {n: [] for n in running}
    gone, alone, beside, bare_beside = [], [], [], []
    for _ in range(rounds):
        for size in running:
            bare[size].append(start_qemus(disk, size))
            settle(size)
            running[size].append(start_all(start, size))
            kill_all(qvm)
            settle(size)
        alone.append(start_all(start, 1))
        kill_all(qvm)
        settle(1)
        start_all(start, 50)
        time.sleep(3)
        time_gone, time_beside = stop_beside_start(qvm, start)
        gone.append(time_gone)
        beside.append(time_beside)
        kill_all(qvm)
        settle(50)
        bare_beside.append(kill_beside_start_of_qemu(disk))
        settle(50)
    print(f"{rounds} rounds\n")
    show_head()
    for size, values in running.items():
        show(f"{size} VMs run, from the first exec", values)
        show(f"{size} QEMUs alone run, from the first exec", bare[size])
    show("50 stopped at once: gone from the host", gone)
    show("one start, alone", alone)
    show("one start, while 50 are stopped", beside)
    show("one QEMU alone, while 50 QEMUs are killed", bare_beside)


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
        self.ms = since(begin)

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
            time_beside = since(begin_another)
        if time_gone is None and not old & set(links()) and \
                not any((run / name).exists() for name in running):
            time_gone = since(begin)
        time.sleep(0.002)
    stop.wait()
    return time_gone, time_beside


if __name__ == "__main__":
    on_own_host(measure)
