#!/usr/bin/env python3
"""kill.py QVM DISK [ROUNDS]: from SIGKILL to a clean host, by the command line.

1, 10 and 100 VMs that run and do nothing end together: their supervisors by SIGKILL, or all by one
`qvm kill`. The host is clean when no process of theirs lives, no link of theirs is there, and the
nftables ruleset and the network namespaces are as before. After SIGKILL, `qvm gc` removes the run
directories. DISK is raw, boots and halts. Root; the host is a namespace of this program's own."""

import json
import os
import pathlib
import select
import signal
import subprocess
import time

from vms import QUIET, links, on_own_host, settle, show, show_head, since, start_all

ROUNDS = {1: 5, 10: 5, 100: 3}  # by the number of VMs
STARTS_AT_ONCE = 10
OF_EACH = 3  # processes: qvm, QEMU, dnsmasq
PAUSE = 2  # ms between two looks at the links
LONGEST = 120  # seconds that anything may take
CLEAN_BY_SIGKILL = "SIGKILL: host clean"  # what ratios are to


def measure(qvm, disk, rounds=None):
    wanted = {size: rounds or some for size, some in ROUNDS.items()}
    series = {size: {} for size in wanted}
    for number in range(max(wanted.values())):
        for size in [size for size in wanted if number < wanted[size]]:
            for end in (end_by_sigkill, end_by_command):
                for name, ms in end(qvm, disk, size).items():
                    series[size].setdefault(name, []).append(ms)
                settle(size)
    print(", ".join(f"{size} VMs: {count} rounds" for size, count in wanted.items()))
    for size, rows in series.items():
        print()
        show_head("  ratio")
        for name, values in rows.items():
            show(f"{size}: {name}", values, rows[CLEAN_BY_SIGKILL])


def end_by_sigkill(qvm, disk, size):
    vms = Vms(qvm, disk, size)
    supervisors = [os.pidfd_open(vm["pid"]) for vm in vms.state]
    begin = time.monotonic()
    for supervisor in supervisors:
        signal.pidfd_send_signal(supervisor, signal.SIGKILL)
    processes_gone, clean, _ = vms.until_clean(begin)
    for supervisor in supervisors:
        os.close(supervisor)
    expect(len(run_directories()) == size, "run directories went by themselves")
    begin = time.monotonic()
    subprocess.run([qvm, "gc"], stdout=subprocess.DEVNULL, check=True)
    swept = since(begin)
    expect(not run_directories(), "gc left a run directory")
    return {CLEAN_BY_SIGKILL: clean, "SIGKILL: processes gone": processes_gone,
            "qvm gc after that": swept}


def end_by_command(qvm, disk, size):
    vms = Vms(qvm, disk, size)
    begin = time.monotonic()
    command = subprocess.Popen([qvm, "kill", *[vm["name"] for vm in vms.state]],
                               stdout=subprocess.DEVNULL)
    _, clean, returned = vms.until_clean(begin, command)
    expect(command.wait() == 0, "kill failed")
    expect(not run_directories(), "kill left a run directory")
    return {"qvm kill: host clean": clean, "qvm kill: returned": returned}


class Vms:
    """`size` VMs whose guests have booted, and a watch on what they have on the host."""

    def __init__(self, qvm, disk, size):
        self.before = rules_and_namespaces()
        for at in range(0, size, STARTS_AT_ONCE):
            start_all([qvm, *QUIET, disk], min(STARTS_AT_ONCE, size - at))
        ps = subprocess.run([qvm, "ps", "--json"], capture_output=True, check=True)
        self.state = json.loads(ps.stdout)
        self.processes = processes()
        expect(len(self.processes) == OF_EACH * size and len(links()) == size,
               f"{len(self.processes)} processes and {len(links())} links of {size} VMs")
        wait_until(lambda: self._ticks_in(0.5) <= 2 + size // 2, "the guests do not come to rest")
        self.pidfds = {os.pidfd_open(pid) for pid in self.processes}

    def _ticks_in(self, seconds):
        """Of CPU time that the VMs used."""
        begin = self._ticks()
        time.sleep(seconds)
        return self._ticks() - begin

    def _ticks(self):
        stats = [pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in self.processes]
        return sum(sum(map(int, stat.rpartition(")")[2].split()[11:13])) for stat in stats)

    def until_clean(self, begin, command=None):
        """ms since `begin` until the processes are gone, until the host is clean, and until
        `command` has returned."""
        commands = [os.pidfd_open(command.pid)] if command else []
        ended = {}
        poll = select.poll()
        for pidfd in (*self.pidfds, *commands):
            poll.register(pidfd, select.POLLIN)

        def look():
            expect(since(begin) < LONGEST * 1e3, f"after {LONGEST} s: {processes()}, {links()}")
            for pidfd, _ in poll.poll(PAUSE):
                poll.unregister(pidfd)
                ended[pidfd] = since(begin)

        while not ended.keys() >= self.pidfds or links():
            look()
        clean = since(begin)
        while not ended.keys() >= {*commands}:
            look()
        processes_gone = max(ended[pidfd] for pidfd in self.pidfds)
        # Looking at these costs a process each, so only now; they went with the sockets.
        while rules_and_namespaces() != self.before:
            clean = since(begin)
            expect(clean < LONGEST * 1e3, f"left: {rules_and_namespaces()}")
        for pidfd in ended:
            os.close(pidfd)
        reap(command)
        return processes_gone, clean, ended[commands[0]] if commands else None


def expect(condition, otherwise):
    if not condition:
        raise RuntimeError(otherwise)


def wait_until(condition, otherwise):
    begin = time.monotonic()
    while not condition():
        expect(since(begin) < LONGEST * 1e3, otherwise)


def processes():
    """All that live in this PID namespace but this one."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]


def reap(command):
    """The orphans, who are ours in this PID namespace."""
    if command:
        command.wait()
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def run_directories():
    return [name for name in os.listdir(os.environ["QVM_RUN_DIR"]) if not name.startswith(".")]


def rules_and_namespaces():
    return [subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
            for command in ("nft list ruleset", "lsns -t net -n -r -o NS")]


if __name__ == "__main__":
    on_own_host(measure)
