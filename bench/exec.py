#!/usr/bin/env python3
"""exec.py QVM DEMO [ROUNDS]: a command in a guest, by the command line.

`qvm run ... -- true` from exec to exit beside QEMU alone with the same disk or kernel, where the
guest agent is asked (as vmtest does), or a command is the guest's init (as virtme-ng does); `qvm
exec` in a guest that runs beside the bare agent; and how much goes through a command's streams.
DEMO is the demo disk. Needs mtools and qemu-img. Root."""

import base64
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

from vms import on_own_host, show, show_head, since

ROUNDS = 5
COMMANDS = 20  # of a round, in a guest that runs
STREAM = 64 * 1024 * 1024  # bytes
CAPTURE = 8 * 1024 * 1024  # the same for the bare agent, which keeps 16 MiB
POLL = 0.01  # s between two questions to the agent; vmtest has 0.05
BOOT = 120  # s
APPEND = "console=ttyS0 quiet"


def measure(qvm, demo, rounds=ROUNDS):
    with tempfile.TemporaryDirectory() as directory:
        kernel = boot_files(demo, pathlib.Path(directory))
        run = [qvm, "run", "-q", "--net", "none"]
        series = {}

        def take(name, ms):
            series.setdefault(name, []).append(ms)

        for _ in range(rounds):
            take("disk: qvm run -- true", timed(*run, demo, "--", "true"))
            take("disk: QEMU alone, by its agent", by_agent(directory, "-drive",
                                                           f"file={demo},snapshot=on,if=virtio"))
            take("kernel: qvm run -- true", timed(*run, *options(kernel), "--", "true"))
            take("kernel: QEMU alone, by its agent", by_agent(directory, *qemu_options(kernel)))
            take("kernel: QEMU alone, poweroff is init", by_init(kernel))
            in_running_guest(qvm, run, kernel, directory, take)
    print(f"{rounds} rounds\n")
    show_head("  ratio")
    first = None
    for name, values in series.items():
        kind = name.split(":")[0]
        if not first or first[0] != kind:
            first = kind, values
        show(name, values, first[1])


def boot_files(demo, directory):
    """The demo disk's kernel and initrd."""
    raw = directory / "demo.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", demo, raw], check=True)
    files = [directory / name for name in ("vmlinuz", "initrd")]
    for file in files:
        subprocess.run(["mcopy", "-i", f"{raw}@@1048576", f"::{file.name}", file], check=True)
    raw.unlink()
    return files


def options(kernel):
    return ["--kernel", kernel[0], "--initrd", kernel[1], "--append", APPEND]


def qemu_options(kernel, append=APPEND):
    return ["-kernel", str(kernel[0]), "-initrd", str(kernel[1]), "-append", append]


def timed(*command, **more):
    begin = time.monotonic()
    subprocess.run(command, check=True, **more)
    return since(begin)


def qemu(*more):
    return subprocess.Popen(["qemu-system-x86_64", "-no-user-config", "-nodefaults", "-machine",
                             "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024M", "-display",
                             "none", "-serial", "null", "-no-reboot", *more])


class Agent:
    """QEMU alone with a guest agent, and nothing between."""

    def __init__(self, directory, *more):
        path = f"{directory}/agent.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            self.qemu = qemu("-chardev", f"socket,id=agent,path={path}", "-device", "virtio-serial",
                             "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
                             *more)
            self.socket, _ = listener.accept()
        os.unlink(path)
        self.lines = self.socket.makefile("rb")
        self.socket.settimeout(BOOT)
        # What is written before the guest has opened its port waits there.
        self.ask("guest-sync", id=1)

    def ask(self, command, **arguments):
        request = json.dumps({"execute": command, "arguments": arguments})
        self.socket.sendall(request.encode() + b"\n")
        answer = json.loads(self.lines.readline())
        if "return" not in answer:
            raise RuntimeError(answer)
        return answer["return"]

    def run(self, *words):
        pid = self.ask("guest-exec", path=words[0], arg=list(words[1:]),
                       **{"capture-output": True})["pid"]
        while not (status := self.ask("guest-exec-status", pid=pid))["exited"]:
            time.sleep(POLL)
        if status.get("exitcode") != 0:
            raise RuntimeError(status)
        return base64.b64decode(status.get("out-data", ""))

    def end(self):
        self.qemu.kill()
        self.qemu.wait()
        self.socket.close()


def by_agent(directory, *more):
    begin = time.monotonic()
    agent = Agent(directory, *more)
    agent.run("true")
    agent.end()
    return since(begin)


def by_init(kernel):
    begin = time.monotonic()
    guest = qemu(*qemu_options(kernel, APPEND + " rdinit=/bin/busybox -- poweroff -f"))
    if guest.wait(BOOT) != 0:
        raise RuntimeError("the guest did not power off")
    return since(begin)


def in_running_guest(qvm, run, kernel, directory, take):
    subprocess.run([*run, "-d", "--name", "box", *options(kernel)], stdout=subprocess.DEVNULL,
                   check=True)
    execute = [qvm, "exec", "box"]
    subprocess.run([*execute, "true"], check=True)
    agent = Agent(directory, *qemu_options(kernel))
    for _ in range(COMMANDS):
        take("round trip: qvm exec true", timed(*execute, "true"))
        begin = time.monotonic()
        agent.run("true")
        take("round trip: the bare agent, polled", since(begin))
    begin = time.monotonic()
    size = len(agent.run("head", "-c", str(CAPTURE), "/dev/zero"))
    take("64 MiB from the guest: qvm exec",
         timed(*execute, "head", "-c", str(STREAM), "/dev/zero", stdout=subprocess.DEVNULL))
    take("64 MiB from the guest: the bare agent", since(begin) * STREAM / size)
    with tempfile.TemporaryFile() as file:
        file.truncate(STREAM)
        take("64 MiB to the guest: qvm exec",
             timed(*execute[:2], "-i", "box", "sh", "-c", "cat >/dev/null", stdin=file))
    agent.end()
    subprocess.run([qvm, "kill", "box"], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    on_own_host(measure)
