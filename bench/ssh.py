#!/usr/bin/env python3
"""ssh.py QVM DEBIAN [ROUNDS]: `true` in a guest that runs, by ssh and without.

Plain ssh goes to a published port with the same key; `qvm ssh` and ssh with `qvm ssh-config` over a
socket of the namespace; `qvm exec` over serial ports. DEBIAN is a disk with cloud-init, sshd and
qemu-guest-agent (`qvm image build-debian`). Root."""

import json
import pathlib
import subprocess
import tempfile
import time

from vms import on_own_host, show, show_head, since

ROUNDS = 20
BOOT = 300  # s


def measure(qvm, debian, rounds=ROUNDS):
    out = subprocess.run([qvm, "run", "-q", "-d", "--net", "isolated", "-p", "0:22", "--wait-for", "ssh",
                          "--wait-for", "cloud-init", debian], check=True, timeout=BOOT, capture_output=True, text=True)
    name = out.stdout.strip()
    with tempfile.TemporaryDirectory() as directory:
        try:
            compare(qvm, name, pathlib.Path(directory), rounds)
        finally:
            subprocess.run([qvm, "kill", name], check=True, timeout=60, stdout=subprocess.DEVNULL)


def compare(qvm, name, directory, rounds):
    config = directory / "ssh_config"
    config.write_text(subprocess.run([qvm, "ssh-config", name], check=True, capture_output=True, text=True).stdout)
    settings = dict(line.split(None, 1) for line in config.read_text().splitlines()[1:])
    port = json.loads(subprocess.run([qvm, "inspect", name], check=True, capture_output=True).stdout)[0]["ports"][0]
    plain = ["ssh", "-F", "none", "-i", settings["IdentityFile"].strip('"'), "-p", str(port["host_port"]),
             "-o", f"UserKnownHostsFile={directory}/known_hosts", "-o", "StrictHostKeyChecking=accept-new",
             "-o", "LogLevel=ERROR", "root@127.0.0.1", "true"]
    ways = {"plain ssh, to a published port": plain,
            "ssh -F, of qvm ssh-config": ["ssh", "-F", str(config), name, "true"],
            "qvm ssh": [qvm, "ssh", name, "true"],
            "qvm exec": [qvm, "exec", name, "true"]}
    series = {way: [] for way in ways}
    for command in ways.values():  # host keys are learned, and qvm's key is let in
        subprocess.run(command, check=True, timeout=60)
    for _ in range(rounds):
        for way, command in ways.items():
            begin = time.monotonic()
            subprocess.run(command, check=True, timeout=60)
            series[way].append(since(begin))
    print(f"{rounds} rounds\n")
    show_head("  ratio")
    for way, values in series.items():
        show(way, values, series["plain ssh, to a published port"])


if __name__ == "__main__":
    on_own_host(measure)
