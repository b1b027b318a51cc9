"""VMs on a host of their own, for the benchmarks that go by the command line."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

INSIDE = "QVM_BENCH_INSIDE"
QUIET = ["run", "-q", "-d", "--net", "nat", "-m", "64M"]


def on_own_host(measure):
    """Runs this program again in namespaces of its own (network, mount, PID), makes them a host
    with an uplink that leads nowhere, and calls measure(QVM, DISK[, ROUNDS]) there."""
    qvm, disk = (os.path.abspath(word) for word in sys.argv[1:3])
    rounds = [int(word) for word in sys.argv[3:4]]
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
        measure(qvm, disk, *rounds)
    finally:
        shutil.rmtree(directory)


def start_all(command, count):
    """ms until the last of `count` that were started together has said that its guest runs."""
    begin = time.monotonic()
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    if any([process.wait() != 0 for process in started]):
        raise RuntimeError("a VM did not start")
    return since(begin)


def since(begin):
    """ms since `begin`, which time.monotonic() gave."""
    return (time.monotonic() - begin) * 1e3


def names(qvm):
    return subprocess.run([qvm, "ps", "-q"], capture_output=True, text=True, check=True) \
        .stdout.split()


def kill_all(qvm):
    if running := names(qvm):
        subprocess.run([qvm, "kill", *running], stdout=subprocess.DEVNULL, check=True)


def settle(count):
    """The kernel destroys the namespaces of `count` VMs long after they are gone from sight."""
    time.sleep(1 + count * 0.05)


def links():
    return [name for name in os.listdir("/sys/class/net") if name.startswith("qvm-")]


def show_head(*more, unit="ms"):
    print(f"{unit:<44} {'median':>9} {'least':>9} {'most':>9}", *more)


def show(name, values, first=None):
    """A row of the table; with `first` also how many times the median of those this one is."""
    middle = statistics.median(values)
    ratio = f" {middle / statistics.median(first):>6.2f}x" if first else ""
    print(f"{name:<44} {middle:>9.1f} {min(values):>9.1f} {max(values):>9.1f}{ratio}")
